"""GGUF, llama.cpp's file format, both ways.

`reader` turns a file into a Hugging Face folder, `writer` a checkpoint into a file with what
`vocabulary` says of its tokenizer. Both take tensor names and row orders from `names`: another
architecture begins there. Values are packed and unpacked by the `gguf` package.
"""
