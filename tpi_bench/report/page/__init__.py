"""One HTML page from results folders: the claims ledger, each experiment, the host.

`page` gathers it and fills the templates beside it (Jinja); `notes` reads what is written of the
experiments, `svg` makes figures that tell their values, `tables` the tables. The page loads nothing
and needs no script; its own small one sorts, filters and shows values.
"""
