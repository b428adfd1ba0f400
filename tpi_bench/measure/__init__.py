"""A point from settings to a record. `prepare.prepare` and `point.measure` tell the story.

What TTFT and token latency are stands in `metrics.py`, the physical limits in `limits.py`; the
columns that are filled here are declared in `report/rows.py`.
"""
