"""Exact speculation: several tokens a pass, those that greedy decoding would have given one by one.

Leviathan et al. (arXiv 2211.17192), for greedy decoding: a draft of up to g tokens is put behind
the last one, one pass computes all g + 1 positions, and the longest prefix that the model itself
would have chosen is kept, with the token that the model chooses behind it. So the text is that of
plain greedy decoding whatever the draft. `engine/speculation.py` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

SPECULATIONS = ("none", "lookup", "draft")


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Of a request. `kind` lookup proposes what followed the longest suffix of the text that stands
    earlier in it (Saxena, "Prompt lookup decoding", 2023); draft asks a model on the master.

    `draft_tokens` is g. `acceptance` is the chance that a drafted token is right where nothing real
    is computed, drawn with `seed`; else None.
    """

    kind: str
    draft_tokens: int
    acceptance: float | None = None
    seed: int = 0
