"""What was typed for a point, of its row (`overrides`): what `sweep_table.py` and `comparison.py`
tell points apart by.

Older rows have devices and prompts as Hydra was told them, percent-encoded, which mean the same.
"""

from __future__ import annotations

import shlex
import urllib.parse

_MARKS = ("%text:", "%text\\:")  # as `app/arguments.py` has it, and as Hydra writes it again


def texts_of(overrides: object) -> list[str]:
    """One text a setting, as a person types it; none of a row that does not say."""
    texts = shlex.split(overrides) if isinstance(overrides, str) else []
    return [_plain(text) for text in texts]


def _plain(text: str) -> str:
    key, equals, value = text.partition("=")
    if key == "device":
        return f"{key}{equals}{urllib.parse.unquote(value)}"
    for mark in _MARKS:
        if value.startswith(mark):  # what is encoded has no backslash of its own
            encoded = value.removeprefix(mark).replace("\\", "")
            return f"{key}{equals}{urllib.parse.unquote(encoded)}"
    return text
