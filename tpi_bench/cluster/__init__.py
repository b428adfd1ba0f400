"""Testbed 3: the devices of a job on several machines, found and reached through Ray.

`testbed.py` is the choice `testbed=cluster`. `nodes.py` says which machines and what is wrong with
them, `agent.py` is what runs on each, `crew.py` is the launcher's crew there, `store.py` and
`shipping.py` bring block files, `identities.py` makes what `network.tls` encrypts with. Only
`ray_cluster.py` imports Ray. Devices are those of `processes/`, whose launcher watches over them: a
row means the same.
"""
