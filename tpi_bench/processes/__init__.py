"""Testbed 1: one OS process a device on this host, TCP over loopback, wall-clock time.

`launcher.py` starts the devices of a job and watches over them, `device.py` is what runs in each;
the two talk in the messages of `control.py`. Devices talk to each other through `mesh.py`. A new
message is one dataclass in `control.py` and a case where it is heard.
"""
