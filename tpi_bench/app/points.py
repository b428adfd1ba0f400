"""One point by itself, from settings to a result: for tasks of the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable

from tpi_bench.app.arguments import as_typed
from tpi_bench.contract.request import Request
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.turns import measuring_turn
from tpi_bench.report.results import Result
from tpi_bench.report.rows import Record


def refuse_unread(settings: Settings) -> None:
    """Raises ValueError for a device profile that was typed where no testbed reads it.

    Sweeps may name one for their virtual points alone.
    """
    if "device" not in settings.testbed.ignores:
        return
    for text in settings.overrides:
        key = text.partition("=")[0].lstrip("+")
        if key.split(".")[0] == "device" and key != "device.memory_mb":
            raise ValueError(
                f"{as_typed(text)} changes nothing here, where devices are processes of this "
                "machine; add testbed=virtual to simulate it"
            )


def run_point(
    settings: Settings,
    *,
    on_start: Callable[[str], None] | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Result:
    """Run it. `on_start` is told what is about to run, `on_text` each piece of the answer.

    Pieces are the numbers of tokens where the model has no tokenizer.

    Raises ValueError for what cannot be run, without waiting for a turn, and HostBusy where
    another program measures here and `wait=false` was given; a device that fails is a result that
    says so.
    """
    from tpi_bench.measure.point import measure
    from tpi_bench.measure.prepare import describe, prepare, refuse_early
    from tpi_bench.models.tokenizer import TextStream

    refuse_unread(settings)
    refuse_early(settings)
    with measuring_turn(settings.testbed, wait=settings.wait):
        prepared = prepare(settings)
        if on_start is not None:
            on_start(describe(prepared))
        folder = prepared.model.folder
        stream = TextStream(folder) if folder else None

        def show(token: int) -> None:
            assert on_text is not None
            on_text(stream.add(token) if stream else f"{token} ")

        record = measure(prepared, None if on_text is None else show)
    answer = TextStream(folder) if folder else None
    if answer is None or not answer.is_text or record.run.cost == "modelled":
        return Result(record)
    text = "".join(answer.add(token.token_id) for token in record.tokens)
    return Result(record, text, _is_cut(record, prepared.job.request))


def _is_cut(record: Record, request: Request) -> bool:
    """Whether the answer had no end of its own."""
    ids = [token.token_id for token in record.tokens]
    return len(ids) == request.num_new_tokens and ids[-1] not in request.eos_ids
