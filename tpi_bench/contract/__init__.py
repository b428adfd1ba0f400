"""The words that all rooms share: what a model, plan, device, network, system and testbed are.

Imports nothing of ours and no heavy library. What is added here is a promise to every room: a word
belongs here when two rooms that may not import each other must both say it.
"""
