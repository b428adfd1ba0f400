"""The ledger on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tpi_bench.report.ledger.entries import VERDICTS
from tpi_bench.report.ledger.verdicts import Judged

_WIDTH, _INDENT = 100, " " * 5


def ledger_text(found: Sequence[Judged]) -> str:
    """A paragraph a claim that has rows, those without in one, and how many there are of each."""
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    with_rows = [each for each in found if not each.missing]
    parts = [_paragraph(each) for each in with_rows]
    if len(with_rows) < len(found):
        parts.append(_without_rows([each for each in found if each.missing]))
    return "\n".join([*parts, f"{len(found)} claims: {told}"])


def _without_rows(found: Sequence[Judged]) -> str:
    """The questions that wait for the same folders together."""
    waiting: dict[str, list[int]] = {}
    for each in found:
        waiting.setdefault(" and ".join(each.missing), []).append(each.entry.question)
    lines = ["not shown for want of rows (python -m tpi_bench +experiment=NAME makes them):"]
    for names, questions in waiting.items():
        lines += _wrapped(f"{_INDENT}{', '.join(map(str, questions))}: {names}")
    return "\n".join(lines) + "\n"


def _paragraph(each: Judged) -> str:
    entry = each.entry
    lines = [
        *_wrapped(f"{entry.question:>3}. {entry.claim} ({entry.by})"),
        *_wrapped(f"{_INDENT}{each.verdict.upper()}: {each.why}"),
        *_wrapped(f"{_INDENT}{each.measured}"),
    ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT, drop_whitespace=True)
