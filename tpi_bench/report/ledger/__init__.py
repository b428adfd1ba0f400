"""The claims ledger: what others say, what our rows say to it, and the verdict.

`results/ledger.yaml` has an entry a question. `entries` reads and checks it, `values` computes
what an entry measures from rows, `verdicts` applies its rules, `text` tells it on a terminal. To
add a claim, add an entry; nothing here knows a single one of them.
"""
