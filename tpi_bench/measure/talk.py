"""A conversation: what the model has in its KV cache, and what each turn adds to it.

Every turn the whole conversation is encoded anew, as the model's chat template has it. What of it
is cached stays; only what follows is fed, so that the answer is the one that the whole would get.
`app/chat.py` asks and shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpi_bench.contract.job import NextTurn, OnToken, Outcome
from tpi_bench.contract.model import Model
from tpi_bench.contract.request import Generation, Request, Turn, Workload
from tpi_bench.host import cache
from tpi_bench.host.helper import SharedHelper
from tpi_bench.measure.planned import load_model
from tpi_bench.measure.prepare import Prepared, prepare
from tpi_bench.measure.settings import Settings
from tpi_bench.models.tokenizer import TextStream, encode_conversation, has_tokenizer

POSITIONS = 2048  # of the KV cache, if the model knows as many
NEW_TOKENS = 256  # of an answer, where nothing else is said
_PIECE = 64  # positions that a step takes at most
_IDLE_S = 3600.0


class Full(ValueError):
    """The KV cache has no room for another turn."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One turn: what was fed, what was there already, and what came of it."""

    token_ids: list[int]
    text: str
    num_fed: int
    num_cached: int
    num_positions: int
    ttft_s: float
    token_latencies_s: list[float]
    is_cut: bool  # at the most tokens that an answer may have
    is_stopped: bool  # before its end, by the person


def prepare_talk(settings: Settings, first: str | None = None) -> Prepared:
    """A job that talks, with everything on the disk. Raises ValueError, also for a `first` turn
    that the model cannot be given; starts no device.
    """
    refuse_talk(settings)
    model = load_model(settings.model, cache.cache_folder(settings.cache_dir))
    if first is not None and _folder_of(model) is None:
        _typed_ids(model, first)
    workload = settings.workload
    positions = workload.positions or min(POSITIONS, model.config.context_length)
    piece = min(workload.prefill_chunk or _PIECE, positions // 2)
    workload = replace(
        workload,
        prompt=None,
        prompt_ids=[1] * piece,  # a prompt to warm up with, as long as a step may be
        num_new_tokens=min(workload.num_new_tokens, positions - piece),
        warmup_tokens=min(workload.warmup_tokens, positions - piece),
        positions=positions,
    )
    prepared = prepare(replace(settings, workload=workload))
    return replace(prepared, job=replace(prepared.job, talks=True, stream=True))


def refuse_talk(settings: Settings) -> None:
    """What cannot be talked with, before anything is made for it."""
    if not settings.testbed.can_talk:
        raise ValueError("task=chat talks with devices as they run; use testbed=processes")
    if not settings.system.talks:
        raise ValueError(
            f"task=chat with system={settings.system.name}, which does not keep its KV cache from "
            "one turn to the next; use tpi, pipeline, mmap, blocking, edgeshard or galaxy"
        )
    if settings.timeout_s is not None:
        raise ValueError("timeout_s with task=chat would end the conversation; leave it out")
    if settings.check or settings.workload.text is not None:
        raise ValueError("task=chat compares nothing and reads no text; leave out check and text")


def _folder_of(model: Model) -> Path | None:
    """With the model's tokenizer; None where a turn is token ids."""
    return model.folder if model.folder and has_tokenizer(model.folder) else None


def _typed_ids(model: Model, text: str) -> list[int]:
    """A turn for a model without tokenizer. Raises ValueError."""
    vocab = model.config.vocab
    words = re.split(r"[\s,]+", text.strip(" \t\r\n[]"))
    if not all(word.isdecimal() and int(word) < vocab for word in words):
        raise ValueError(
            f"model={model.name} has no tokenizer, so a turn is token ids of 0 to {vocab - 1}, as "
            f"1 2 3; given was {text[:40]!r}"
        )
    return [int(word) for word in words]


class Talk:
    """The conversation as it goes. `ask` makes a turn, `take` its answer."""

    def __init__(self, model: Model, request: Request, workload: Workload) -> None:
        self._model = model
        self._positions = request.positions
        self._eos_ids = request.eos_ids  # none where they end nothing
        self._num_new_tokens = workload.num_new_tokens
        self._chat = workload.chat
        self._folder = _folder_of(model)
        self._helper = SharedHelper(_IDLE_S, "the process of a conversation's tokenizer")
        self._texts: list[str] = []
        self._ids: list[int] = []  # all that was said, the last token included
        self._cached: list[int] = []
        self._turn = Turn(position=0, token_ids=[], num_new_tokens=0)

    @property
    def speaks_ids(self) -> bool:
        """Whether turns are numbers of tokens, as there is no tokenizer."""
        return self._folder is None

    def ask(self, text: str) -> Turn:
        """What the KV cache needs for an answer to `text`. Raises ValueError, Full."""
        ids = self._encoded(text)
        same = _num_same(ids[:-1], self._cached)  # one at least is fed
        room = self._positions - len(ids)
        if room < 1:
            raise Full(
                f"the conversation has {len(ids)} tokens with this turn, and the KV cache room for "
                f"{self._positions}; begin anew, or give workload.positions="
                f"{min(2 * self._positions, self._model.config.context_length)}"
            )
        self._texts.append(text)
        self._ids, self._cached = ids, ids[:same]
        limit = min(self._num_new_tokens, room)
        self._turn = Turn(position=same, token_ids=ids[same:], num_new_tokens=limit)
        return self._turn

    def take(self, answer: Generation, is_stopped: bool = False) -> Answer:
        """The answer to the turn that was asked last; `is_stopped` where it was asked to end."""
        self._ids = [*self._ids, *answer.token_ids]
        self._cached = self._ids[:-1]  # the last token has not been fed
        text = self._decoded(answer.token_ids)
        self._texts.append(text)
        times = [answer.request_ns, *answer.token_ns]
        gaps_s = [(after - before) / 1e9 for before, after in itertools.pairwise(times)]
        is_whole = answer.token_ids[-1] in self._eos_ids
        is_at_limit = len(answer.token_ids) == self._turn.num_new_tokens
        return Answer(
            token_ids=answer.token_ids,
            text=text,
            num_fed=len(self._turn.token_ids),
            num_cached=self._turn.position,
            num_positions=len(self._ids),
            ttft_s=gaps_s[0],
            token_latencies_s=gaps_s[1:],
            is_cut=is_at_limit and not is_whole,
            is_stopped=is_stopped and not is_at_limit and not is_whole,
        )

    def end(self) -> None:
        self._helper.end()

    def _encoded(self, text: str) -> list[int]:
        """The whole conversation with `text` at its end."""
        if self._folder is not None:
            texts = (*self._texts, text)
            ids: list[int] = self._helper.call(encode_conversation, self._folder, texts, self._chat)
            return ids
        return [*self._ids, *_typed_ids(self._model, text)]

    def stream(self) -> TextStream | None:
        """What makes text of an answer's tokens, if there is a tokenizer."""
        return TextStream(self._folder) if self._folder is not None else None

    def _decoded(self, token_ids: Sequence[int]) -> str:
        stream = self.stream()
        if stream is None:
            return " ".join(str(token) for token in token_ids)
        return "".join(stream.add(token) for token in token_ids)


def talk(prepared: Prepared, next_turn: NextTurn, on_token: OnToken | None) -> Outcome:
    """Start the devices and answer until `next_turn` has none. Never raises for a device."""
    return prepared.settings.testbed.converse(prepared.job, on_token, next_turn)


def _num_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
