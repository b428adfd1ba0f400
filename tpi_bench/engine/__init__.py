"""Rank programs and what they are made of: the same code runs on every testbed.

No clock, socket or thread: what a second, a message and a disk are is asked of the runtime
(`contract/runtime.py`). A collective is one record in `collectives.py`; the order in which it sums
stands there too. Other systems built on these parts live in `baselines/`.
"""
