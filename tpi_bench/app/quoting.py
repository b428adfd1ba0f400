"""Text as a value in the grammar that Hydra reads what is typed with."""

from __future__ import annotations


def quoted(text: str) -> str:
    """In quotes, between which nothing but these means anything."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
