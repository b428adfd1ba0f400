"""The products alone: every weight of a token multiplied with one vector, and nothing else.

What the engine's own kernels take for the matrices of a token, block by block out of the same
files, without the small operators, the sampling and the messages between them. A token of
`system=tpi` takes longer by just these: the two beside each other are the account of what is not
weights, which spans cannot give, as a span holds a whole block. With `by_matrix` each matrix has a
span of its own, kept by `testbed.trace=true`; with `rows`, each is multiplied with so many vectors
at once, as those of a prompt are, and `part` takes that product apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.engine.generation import warmed_up
from tpi_bench.engine.plans import tensor_parallel

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Key, Runtime
    from tpi_bench.engine.matrix import Matrix


PARTS = ("product", "in_tiles", "widening")


@dataclass(frozen=True, kw_only=True)
class ProductsSystem(System):
    """`system=products`. Devices multiply what TPI gives them, each for itself; token 0 is one too.

    The tokens mean nothing.
    """

    name: str = setting("products", "how rows call it")
    rows: int = setting(1, "vectors that each matrix is multiplied with at once")
    by_matrix: bool = setting(False, "each matrix is a computation of its own, named by its shape")
    part: str = setting(
        "product",
        "what is done: the product as the engine has it; in_tiles: a tile of the weight after "
        "another, as 8- and 4-bit weights are multiplied with a prompt's rows; widening: their "
        "tiles alone, nothing multiplied",
        PARTS,
    )

    talks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(
                f"system.rows is {self.rows}; it is 1 for a token, or more for a prompt"
            )
        if self.part not in PARTS:
            raise ValueError(
                f"system.part={self.part} is unknown; choose one of {', '.join(PARTS)}"
            )

    @property
    def label(self) -> str:
        return "products alone"

    @property
    def variant(self) -> str:
        return "" if self.part == "product" else self.part.replace("_", " ")

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        return tensor_parallel(config, site.proportions, site.group)

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        import torch

        matrices = token_matrices(rt, self, job)
        dtype = getattr(torch, job.dtype)
        vectors = {
            cols: torch.ones(self.rows, cols, dtype=dtype) for _, cols in shapes_of(matrices)
        }
        parts = [[matrix] for matrix in matrices] if self.by_matrix else [matrices]
        keys = [self._key(job, part) for part in parts]

        work = _WORK[self.part]

        def multiply(part: list[Matrix]) -> None:
            for matrix in part:
                work(matrix, vectors[matrix.shape[1]])

        def answer(limit: int, output: Output) -> Generation:
            result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
            for _ in range(limit):
                for key, part in zip(keys, parts, strict=True):
                    rt.compute(key, partial(multiply, part))
                result.token_ids.append(0)
                result.token_ns.append(rt.now())
            return result

        result = warmed_up(job.request, output, answer)
        return None if rt.rank else result

    def _key(self, job: Job, part: list[Matrix]) -> Key:
        """What its cost depends on; its first word is what a span of it is called."""
        shapes = shapes_of(part)
        name = f"{shapes[0][0]}x{shapes[0][1]}" if self.by_matrix else "products"
        return (name, job.dtype, job.weights, self.rows, self.part, *shapes)


def _multiplied(matrix: Matrix, x: torch.Tensor) -> None:
    matrix(x)


def _in_tiles(matrix: Matrix, x: torch.Tensor) -> None:
    from tpi_bench.engine import tiles

    tiles.in_tiles(x, matrix.values, matrix.scales, matrix.shape)


def _widened(matrix: Matrix, x: torch.Tensor) -> None:
    from tpi_bench.engine import tiles

    for _ in tiles.tiles_of(matrix.values, matrix.scales, matrix.shape, x.dtype):
        pass


_WORK = {"product": _multiplied, "in_tiles": _in_tiles, "widening": _widened}


def token_matrices(rt: Runtime, system: System, job: Job) -> list[Matrix]:
    """All that a token is multiplied with on this device, in order: of an embedding only a head."""
    from tpi_bench.engine.device_model import DeviceModel

    model = DeviceModel(rt, job, system.streaming(job, rt.rank))
    found: list[Matrix] = []
    for index, block in enumerate(job.blocks[rt.rank]):
        if block.kind != "input":
            found += model.window.acquire(index).matrices.values()
            model.window.release(index)
    return found


def shapes_of(matrices: list[Matrix]) -> list[tuple[int, int]]:
    """(o, i) of each."""
    return [(rows, cols) for rows, cols in (matrix.shape for matrix in matrices)]
