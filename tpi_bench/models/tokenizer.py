"""Text to token ids and back. Encoding needs transformers; decoding is light.

The prompt of a point is encoded once, in a helper process; `task=generate` prints what comes back.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpi_bench.host.fork import in_helper


@functools.lru_cache
def encode_prompt(folder: Path, prompt: str, chat: bool) -> tuple[int, ...]:
    """Token ids of a prompt, through the model's chat template if `chat` and it has one."""
    if not has_tokenizer(folder):
        raise ValueError(
            f"{folder} holds no tokenizer; give workload.prompt_ids=[1,2,3] instead of a prompt"
        )
    return tuple(in_helper(encode_conversation, folder, (prompt,), chat))


def has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return any((folder / name).is_file() for name in names)


def encode_conversation(folder: Path, texts: Sequence[str], chat: bool) -> list[int]:
    """Token ids of what a user and the model have said in turns, and of whose turn it is now.

    Without a chat template they follow each other, a line each. Loads transformers: for a helper.
    """
    tokenizer = _tokenizer(folder)
    if chat and tokenizer.chat_template:
        roles = itertools.cycle(("user", "assistant"))
        said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(str(text), add_special_tokens=False)
    return tokenizer.encode("\n".join(texts) + "\n" * (len(texts) > 1))


@functools.lru_cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


class TextStream:
    """Turns token ids into text piece by piece, holding back incomplete characters."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None
        self._ids: list[int] = []
        self._text = ""

    @property
    def is_text(self) -> bool:
        """Whether pieces are text, and not numbers of tokens."""
        return self._tokenizer is not None

    def add(self, token: int) -> str:
        """The text that `token` adds; its number where the model has no fast tokenizer.

        A token below 0 is one that is not known, and adds nothing.
        """
        if token < 0:
            return ""
        if self._tokenizer is None:
            return f"{token} "
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._text = text[len(self._text) :], text
        return new
