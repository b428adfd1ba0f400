"""The virtual network held against SimGrid, which others wrote: `make validate_network`.

The same rank programs run through both: on our side in `ours.py`, under the system's Python and
SimGrid in `simgrid_side.py`. A network is a `Case` of `cases.py`; `wiring.py` says once more,
without `tpi_bench.virtual`, what lies between two devices. `compare.py` holds times against each
other and looks for the assumption of a model that makes them equal. It lives with the tests because
it is one, and because only tests and `app` may use the virtual network and baselines together.

A new case is a line in `cases.py`. The files that SimGrid's Python loads (`simgrid_*`, `stand_ins`,
`programs`, `cases`, `wiring`, `times`) and what they take of ours need the standard library alone.
"""
