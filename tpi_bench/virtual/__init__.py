"""Testbed 2: devices of given profiles in virtual time, in one process.

`testbed.py` are the settings; `run.py` runs a job. The same rank programs are greenlets
(`runtime.py`), all those of a run a world (`world.py`), under a discrete-event scheduler
(`scheduler.py`). What a computation costs is said in `costs.py`, what a message meets on its way in
`network.py`, how long a read takes in `disk.py`, and what devices of one host have in common in
`shared_disk.py` and `memory_bus.py`.

A new topology is a class in `topologies.py`, which says how. A new way to charge computations is a
class in `costs.py`, its name in COSTS of `testbed.py`, and where `run.py` chooses one.
"""
