"""Workloads: the prompt, how many tokens, and how they are sampled. Pure configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tpi_bench.contract.model import WEIGHTS
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS, Speculation


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy at temperature 0; else top-k and top-p of the softmax at that temperature, seeded."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"workload.temperature={self.temperature} must be at least 0 (0 is greedy)"
            )
        if self.top_k < 0:
            raise ValueError(f"workload.top_k={self.top_k} must be at least 0 (0 is off)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"workload.top_p={self.top_p} must be in (0, 1] (1 is off)")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The `workload` group. One request at a time (batch 1), as in the paper.

    `prompt_tokens` makes a prompt of that many fixed ids, for models without a tokenizer.
    `prefill_chunk` feeds a prompt in pieces of so many positions, which takes less memory for
    activations and messages; None feeds it whole.
    `warmup_tokens` are generated first, from the same prompt, and reported apart. A point that has
    generated `min_new_tokens` stops once decoding took `max_decode_s`, so that a sweep over slow
    links ends; the row says how many tokens were timed.

    With `text` (a file, or `page`, one that comes with the program) nothing is generated: its first
    `text_tokens` tokens are given one by one, and the row gets the perplexity that they had.
    `prompt_ids` and `prompt_tokens` are the text's ids then.

    With `speculation` a pass computes up to `draft_tokens` + 1 positions (`speculation.py`).
    `draft_model` is a name in conf/model, a folder, a GGUF file or a hub id, or `same`: the point's
    own model, in `draft_weights`. `acceptance` stands for its real one in modelled virtual time.
    What a kind of speculation does not ask for is not read, so that kinds can be swept.
    """

    name: str = setting("chat", "how rows call it")
    prompt: str | None = setting(None, "the text that is answered; prompt= sets it as typed")
    prompt_ids: list[int] | None = setting(None, "token ids instead of a text", common=True)
    prompt_tokens: int | None = setting(
        None, "or a prompt of that many fixed ids, for models without a tokenizer", common=True
    )
    prefill_chunk: int | None = setting(
        None, "the prompt in pieces of so many positions, which take less memory; null is whole"
    )
    text: str | None = setting(
        None,
        "a file, or page (one that comes with the program), whose perplexity is"
        " measured; nothing is generated",
    )
    text_tokens: int = setting(512, "how many tokens of that text")
    chat: bool = setting(True, "use the model's chat template, if it has one")
    num_new_tokens: int = setting(32, "how many tokens are generated at most", common=True)
    min_new_tokens: int = setting(4, "with max_decode_s: never fewer than this")
    max_decode_s: float | None = setting(None, "stop decoding after so many seconds")
    warmup_tokens: int = setting(1, "generated first and not counted")
    positions: int | None = setting(
        None,
        "that the KV cache has room for; null: prompt and answer, and in a chat 2048 or what the "
        "model knows",
    )
    ignore_eos: bool = setting(False, "go on after the end-of-sequence token")
    temperature: float = setting(0.0, "of sampling; 0 is greedy", common=True)
    top_k: int = setting(0, "sample from the k likeliest tokens; 0 is off")
    top_p: float = setting(1.0, "sample from the likeliest tokens of this share; 1 is off")
    seed: int = setting(0, "of sampling")
    speculation: str = setting(
        "none",
        "several tokens a pass, as greedy would give them: lookup proposes what followed the same "
        "words earlier, draft asks draft_model",
        SPECULATIONS,
        common=True,
    )
    draft_tokens: int = setting(4, "tokens that a pass of speculation proposes at most")
    draft_model: str | None = setting(
        None,
        "with speculation=draft, the model on the master: same (as model=, in draft_weights), a "
        "name in conf/model, a folder, a .gguf file or an id on the hub",
    )
    draft_weights: str = setting(
        "q4", "what the draft model's weights are held in", ("auto", *WEIGHTS)
    )
    acceptance: float | None = setting(
        None,
        "chance that a drafted token is right, where nothing real is computed "
        "(testbed.cost=modelled); else it is measured",
    )

    def __post_init__(self) -> None:
        self._check_speculation()
        if self.num_new_tokens < 1:
            raise ValueError(f"workload.num_new_tokens={self.num_new_tokens} must be at least 1")
        if self.warmup_tokens < 0:
            raise ValueError(f"workload.warmup_tokens={self.warmup_tokens} must be at least 0")
        if self.max_decode_s is not None and not self.max_decode_s > 0:
            raise ValueError(
                f"workload.max_decode_s={self.max_decode_s} must be above 0 seconds, or null"
            )
        if self.prompt_ids is not None and len(self.prompt_ids) == 0:
            raise ValueError("workload.prompt_ids=[] is empty; give at least one token id")
        if self.prompt_tokens is not None and self.prompt_tokens < 1:
            raise ValueError(f"workload.prompt_tokens={self.prompt_tokens} must be at least 1")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise ValueError(
                f"workload.prefill_chunk={self.prefill_chunk} must be at least 1 position, or null "
                "for the whole prompt at once"
            )
        if self.text_tokens < 2:
            raise ValueError(f"workload.text_tokens={self.text_tokens} must be at least 2")
        if not self.has_ids and not self.prompt and not self.text:
            raise ValueError(
                'the prompt is empty; give prompt="some text" or workload.prompt_ids=[1,2,3]'
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"workload.seed={self.seed} must be in 0 to {(1 << 63) - 1}")
        if self.positions is not None and self.positions < 2:
            raise ValueError(f"workload.positions={self.positions} must be at least 2, or null")
        _ = self.sampling

    def _check_speculation(self) -> None:
        if self.speculation not in SPECULATIONS:
            raise ValueError(
                f"workload.speculation={self.speculation} is unknown; choose one of "
                f"{', '.join(SPECULATIONS)}"
            )
        if self.draft_tokens < 1:
            raise ValueError(f"workload.draft_tokens={self.draft_tokens} must be at least 1")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise ValueError(f"workload.acceptance={self.acceptance} must be in 0 to 1, or null")
        if self.draft_weights not in ("auto", *WEIGHTS):
            raise ValueError(
                f"workload.draft_weights={self.draft_weights} is unknown; choose one of auto, "
                f"{', '.join(WEIGHTS)}"
            )
        if self.speculation == "none":
            return
        if self.speculation == "draft" and self.draft_model is None:
            raise ValueError(
                "workload.speculation=draft needs a model that drafts; give workload.draft_model="
                "same, a name in conf/model, a folder, a .gguf file or an id on the hub"
            )
        if self.temperature:
            raise ValueError(
                f"workload.temperature={self.temperature} with workload.speculation="
                f"{self.speculation}, which gives what greedy decoding gives; set temperature to 0"
            )
        if self.text is not None:
            raise ValueError(
                f"workload.text with workload.speculation={self.speculation}: a text is given and "
                "nothing is generated; leave out one of them"
            )

    @property
    def drafts(self) -> Speculation | None:
        """How passes propose tokens; None for one token a pass."""
        if self.speculation == "none":
            return None
        return Speculation(
            kind=self.speculation,
            draft_tokens=self.draft_tokens,
            acceptance=self.acceptance,
            seed=self.seed,
        )

    @property
    def has_ids(self) -> bool:
        """Whether the prompt is given as token ids, or as how many."""
        return self.prompt_ids is not None or self.prompt_tokens is not None

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the master is asked: token ids in, at most `num_new_tokens` out.

    `text_ids` are the tokens that follow the prompt, whatever the model would say.
    `prefill_chunk` is the most positions of the prompt that one step takes; None: all. `positions`
    is what the KV cache has room for, where a conversation goes on. `speculation` None gives a
    token a pass. `prompt_text` is the prompt as it was typed, for what has a tokenizer of its own;
    None where it was given as ids.
    """

    prompt_ids: tuple[int, ...]
    num_new_tokens: int
    min_new_tokens: int = 1
    max_decode_ns: int | None = None
    warmup_tokens: int = 1
    eos_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    keep_logits: bool = False
    text_ids: tuple[int, ...] = ()
    prefill_chunk: int | None = None
    positions: int = 0
    speculation: Speculation | None = None
    prompt_text: str | None = None

    @property
    def length(self) -> int:
        """Positions the KV cache must hold."""
        needed = len(self.prompt_ids) + max(self.num_new_tokens, self.warmup_tokens)
        return max(self.positions, needed)

    @property
    def most_new(self) -> int:
        """Most positions that a step takes: what activations and messages need room for."""
        return max(self.most_fed, self.most_drafted + 1)

    @property
    def most_fed(self) -> int:
        """Most positions of the prompt that a step takes."""
        whole = len(self.prompt_ids)
        return whole if self.prefill_chunk is None else min(whole, self.prefill_chunk)

    @property
    def most_drafted(self) -> int:
        """Most tokens that a pass proposes: the first and the last of an answer never are."""
        if self.speculation is None:
            return 0
        longest = max(self.num_new_tokens, self.warmup_tokens)
        return max(0, min(self.speculation.draft_tokens, longest - 2))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A part of a conversation: `token_ids` go into the KV cache from `position` on.

    What is cached before that stays; what was cached from there on is forgotten.
    """

    position: int
    token_ids: list[int]
    num_new_tokens: int


@dataclass(kw_only=True)
class Generation:
    """What one request gave, with the raw times. `account` splits each token's time by kind, in ns.

    `account[i]` covers the time that ends with token i; kinds that were not measured are absent.
    `log_probs` are how likely the model found each token of a given text (natural logarithms).
    With speculation, `proposed[i]` tokens were drafted in the i-th pass after the first token, and
    `accepted[i]` of them are in the text; those of one pass have the same time.
    `prompt_tokens` is the prompt's length where somebody else counted it, and `note` what must be
    known of the answer.
    """

    token_ids: list[int]
    request_ns: int
    token_ns: list[int]
    account: list[dict[str, int]]
    warmup_ttft_ns: int | None = None
    log_probs: list[float] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    prompt_tokens: int | None = None
    note: str = ""

    @property
    def num_passes(self) -> int:
        """Passes over the layers after the first token."""
        return len(self.proposed) or max(0, len(self.token_ids) - 1)


def make_request(
    workload: Workload,
    prompt_ids: Sequence[int],
    *,
    vocab: int,
    context_length: int,
    eos_ids: Sequence[int],
    keep_logits: bool = False,
) -> Request:
    """A checked request. Raises ValueError when ids or lengths do not fit the model.

    Of a workload with a text, `prompt_ids` are those of the text.
    """
    outside = [i for i in prompt_ids if not 0 <= i < vocab]
    if outside:
        raise ValueError(
            f"prompt token id {outside[0]} is outside the model's vocabulary (0 to {vocab - 1})"
        )
    if workload.text is not None:
        return _text_request(workload, prompt_ids[: min(workload.text_tokens, context_length)])
    num_new = max(workload.num_new_tokens, workload.warmup_tokens)
    needed = len(prompt_ids) + num_new
    if workload.positions is not None and not needed <= workload.positions <= context_length:
        raise ValueError(
            f"workload.positions={workload.positions} must be {needed} (prompt and answer) to "
            f"{context_length} (the model's context)"
        )
    if needed > context_length:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and {num_new} are to be generated: {needed} "
            f"positions, but the model's context is {context_length}; shorten one of them"
        )
    if workload.speculation != "none" and workload.draft_tokens >= context_length:
        raise ValueError(
            f"workload.draft_tokens={workload.draft_tokens} must be below {context_length}, the "
            "model's context"
        )
    return Request(
        prompt_ids=tuple(prompt_ids),
        num_new_tokens=workload.num_new_tokens,
        min_new_tokens=workload.min_new_tokens,
        max_decode_ns=None if workload.max_decode_s is None else round(workload.max_decode_s * 1e9),
        warmup_tokens=workload.warmup_tokens,
        eos_ids=() if workload.ignore_eos else tuple(eos_ids),
        sampling=workload.sampling,
        keep_logits=keep_logits,
        prefill_chunk=workload.prefill_chunk,
        positions=workload.positions or 0,
        speculation=workload.drafts,
        prompt_text=None if workload.has_ids else workload.prompt,
    )


def _text_request(workload: Workload, text_ids: Sequence[int]) -> Request:
    """The first token is the prompt, and each other the next whatever the model says."""
    if len(text_ids) < 2:
        raise ValueError("workload.text has no two tokens; give a longer text")
    following = tuple(text_ids[1:])
    return Request(
        prompt_ids=tuple(text_ids[:1]),
        num_new_tokens=len(following),
        warmup_tokens=min(workload.warmup_tokens, len(following)),
        text_ids=following,
    )
