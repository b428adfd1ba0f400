"""Weights in, block files out: where a model comes from, and how each device's part of it is kept.

`sources` is the `model` group; a new one is a dataclass there with `load`, and a YAML in
`conf/model/`. The sharder cuts any `Checkpoint` into block files; `gguf/` makes the one file that
llama.cpp opens. All of it loads without torch: what needs torch runs in a helper process.
"""
