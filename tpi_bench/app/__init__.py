"""The command line, and the only room that knows Hydra.

`main.py` is the entry, `compose.py` turns the composed configuration into checked settings,
`tasks.py` holds a task each (`task=NAME`), `sweeper.py` and `experiment.py` run many points.
"""
