"""Rows, and what is made of them without torch: tables, text, JSON, figures.

A column is declared once, in `rows.py`; how rows are called stands in `names.py`, colours and axes
in `figures.py`. Experiments draw with these (`experiments/README.md`). `ledger/` makes verdicts of
claims, `page/` one page of everything.
"""
