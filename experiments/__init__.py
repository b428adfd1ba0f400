"""Figures and tables, one file each: stored rows in, figure out. Nothing here imports torch."""
