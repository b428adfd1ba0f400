"""The command line, and the only room that knows Hydra.

`main.py` is the entry, `compose.py` turns the composed configuration into checked settings,
`tasks.py` holds a task each (`task=NAME`), `sweeper.py` and `experiment.py` run many points. A new
task is its name in `compose.TASKS` and a function in `tasks.py` that `run_task` calls.
"""
