"""The command line, and the only room that knows Hydra.

`main.py` is the entry, and `early.py` what says that it was stopped before it was there.
`arguments.py` reads what was typed, `compose.py` turns the composed configuration into checked
settings, `settings.py` says what each means, `unknown.py` which one was
meant. `tasks.py` holds a task each (`task=NAME`), `chat.py` the one that talks, `sweeper.py` and
`experiment.py` run many points, once `refusals.py` has found nothing wrong with them, `advise.py`
searches among them (`advise_asked.py`, `advise_again.py`, `like.py`), `devices.py` makes profiles
of what `device=` names. A new task is
its name in `settings.TASKS` and a function in `tasks.py` that `run_task` calls. Tasks of results
folders need no configuration: `folder_tasks.py` has them, `report_tasks.py` page and ledger,
`reproduce.py` what runs the whole set (`reproduction.py`: what is left of it, and how long).
"""
