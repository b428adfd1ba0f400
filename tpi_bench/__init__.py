"""Benchmarks and experiments for running large language models on several small devices.

Nine rooms on five floors, imports only downward (`tests/test_house.py`): app; measure; models,
processes, virtual, report; engine, host; contract. Each says in its `__init__` what lives there.
"""
