"""Block files that are nowhere, for tests of what is done with them."""

from __future__ import annotations

from tpi_bench.contract.blocks import BlockFile, TensorView


def blocks(num_layers: int, *, master: bool = False) -> list[BlockFile]:
    """A device's blocks in order; the master has the ends too."""

    def block(kind: str, layer: int, nbytes: int) -> BlockFile:
        return BlockFile(
            path=f"{kind}{layer}",
            kind=kind,
            layer=layer,
            data_offset=0,
            nbytes=nbytes,
            tensors={"w": TensorView((4,), 0)},
        )

    inner = [block(k, n, s) for n in range(num_layers) for k, s in (("attn", 4096), ("ffn", 8192))]
    return [block("input", -1, 40960), *inner, block("output", -1, 40960)] if master else inner
