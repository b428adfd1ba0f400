"""The ledger on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tpi_bench.report.ledger.entries import VERDICTS
from tpi_bench.report.ledger.verdicts import Judged

_WIDTH, _INDENT = 100, " " * 5


def ledger_text(found: Sequence[Judged]) -> str:
    """A paragraph a claim, and how many there are of each verdict."""
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return "\n".join([*(_paragraph(each) for each in found), f"{len(found)} claims: {told}"])


def _paragraph(each: Judged) -> str:
    entry = each.entry
    lines = [
        *_wrapped(f"{entry.question:>3}. {entry.claim} ({entry.by})"),
        *_wrapped(f"{_INDENT}{each.verdict.upper()}: {each.why}"),
        *([] if each.missing else _wrapped(f"{_INDENT}{each.measured}")),
    ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT, drop_whitespace=True)
