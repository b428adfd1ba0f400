"""What this machine offers: its cores, memory, cgroups, page cache, disk, cache folder, processes.

Knows the contract and nothing of models or runs (but for what `fork.py` loads ahead). What another
operating system does otherwise is said here, and what it cannot do ends here in NaN, None or an
empty list.
"""
