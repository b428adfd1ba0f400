"""GGUF, llama.cpp's file format, both ways.

`reader` takes config, tokenizer and the places of tensors from a file, whose rows `checkpoint`
gives to the sharder; `writer` turns any checkpoint into a file with what `vocabulary` says of its
tokenizer. Tensor names and row orders are in `names`: another architecture begins there. Values
are packed and unpacked by the `gguf` package.
"""
