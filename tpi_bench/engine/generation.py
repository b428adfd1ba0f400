"""The request loop every system shares: prefill, decode, sample, stop, and the times.

A pass over the layers gives one token, or, with speculation, all those of a draft that the model
agrees with and one more: they come at the same time. One definition of TTFT and token latency for
all systems (`measure/metrics.py`): the clock is read when the request is taken up and after each
pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.job import NextTurn, Output
from tpi_bench.contract.request import Generation, Request, Turn
from tpi_bench.contract.runtime import TOKEN_KINDS, Runtime

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine.speculation import Drafter

# (new token ids, position of the first) -> logits (v,) of the last one. Of a system that
# `speculates` also (new token ids, position, n) -> logits (n, v) of the last n, where n > 1.
Forward = Callable[..., "torch.Tensor"]


def generate(
    rt: Runtime,
    forward: Forward,
    request: Request,
    output: Output,
    drafter: Drafter | None = None,
) -> Generation:
    """Warm up, then answer the request. Runs on the master.

    A forward pass gives a token, or with a `drafter` (`drafter_of`) one or more.
    """
    if (drafter is None) != (request.speculation is None):
        raise ValueError(
            "this request asks for speculation: give `generate` what `drafter_of(rt, job)` makes"
        )
    if output.next_turn is not None:
        return converse(rt, forward, request, output, output.next_turn, drafter)
    return warmed_up(
        request, output, functools.partial(answer, rt, forward, request, drafter=drafter)
    )


def converse(
    rt: Runtime,
    forward: Forward,
    request: Request,
    output: Output,
    next_turn: NextTurn,
    drafter: Drafter | None = None,
) -> Generation:
    """Answer turn after turn from one KV cache; the last answer.

    `request` says how to sample and stop; its prompt warms up and is forgotten.
    """
    warmup = max(1, request.warmup_tokens)
    last = answer(rt, forward, request, warmup, Output(), drafter=drafter)
    text = [*request.prompt_ids, *last.token_ids]
    turn = next_turn(None)
    while turn is not None:
        limit, text = turn.num_new_tokens, text[: turn.position]
        last = answer(rt, forward, request, limit, output, turn, drafter, text)
        text = [*text, *turn.token_ids, *last.token_ids]
        turn = next_turn(last)
    return last


def warmed_up(
    request: Request, output: Output, answer: Callable[[int, Output], Generation]
) -> Generation:
    """`answer(limit, output)` twice: a short answer that nobody sees, then the one that counts."""
    warmup_ttft_ns = None
    if request.warmup_tokens:
        warmup = answer(request.warmup_tokens, Output())
        warmup_ttft_ns = warmup.token_ns[0] - warmup.request_ns
    result = answer(request.num_new_tokens, output)
    result.warmup_ttft_ns = warmup_ttft_ns
    return result


def answer(
    rt: Runtime,
    forward: Forward,
    request: Request,
    limit: int,
    output: Output,
    turn: Turn | None = None,
    drafter: Drafter | None = None,
    before: Sequence[int] = (),
) -> Generation:
    """Up to `limit` tokens from the prompt, or from a turn behind what is cached, `before`."""
    from tpi_bench.engine.sampling import chooser
    from tpi_bench.engine.speculation import Agreement

    choose, agreement = chooser(request), Agreement(request.speculation)
    result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
    result.log_probs = choose.log_probs
    told = _Told(rt, request, result, limit, output)
    new_ids, position = list(request.prompt_ids), 0
    if turn is not None:
        new_ids, position = list(turn.token_ids), turn.position
    text = [*before, *new_ids]
    if drafter is not None:
        drafter.read(text)
    logits = feed(forward, new_ids, position, request.most_fed)
    last, draft = position + len(new_ids) - 1, list[int]()  # position of the last that holds
    while True:
        rows = _rows(logits, len(draft) + 1)
        key = ("sample", rows[0].shape[0]) if len(rows) == 1 else ("sample", *logits.shape)
        chosen = rt.compute(key, functools.partial(_each, choose, rows))
        kept = chosen[: agreement.count(draft, chosen) + 1]
        if told.of_pass(kept, rows, len(draft)):
            return result
        text += kept
        last += len(kept)
        most = min(request.most_drafted, limit - len(result.token_ids) - 1)
        draft = drafter.propose(text, most) if drafter is not None and most > 0 else []
        logits = _pass(forward, [kept[-1], *draft], last)


def _pass(forward: Forward, new_ids: list[int], position: int) -> torch.Tensor:
    """Logits (v,) of one token, or (T, v) of it and what is drafted behind it."""
    if len(new_ids) == 1:
        return forward(new_ids, position)
    return forward(new_ids, position, len(new_ids))


def _each(choose: Callable[[torch.Tensor], int], rows: Sequence[torch.Tensor]) -> list[int]:
    return [choose(row) for row in rows]


def _rows(logits: torch.Tensor, num_rows: int) -> list[torch.Tensor]:
    """(v,) each. Raises ValueError where a forward pass gave something else."""
    if num_rows == 1 and logits.dim() == 1:
        return [logits]
    if num_rows > 1 and logits.dim() == 2 and logits.shape[0] == num_rows:
        return list(logits)
    wanted = "(v,) of the last position" if num_rows == 1 else f"({num_rows}, v) of all positions"
    raise ValueError(
        f"a forward pass gave a tensor of shape {tuple(logits.shape)}; it must give the logits "
        f"{wanted}, as DeviceModel.logits does"
    )


class _Told:
    """Enters what each pass gave in the result, and tells whoever listens."""

    def __init__(
        self, rt: Runtime, request: Request, result: Generation, limit: int, output: Output
    ) -> None:
        self._rt, self._request, self._result = rt, request, result
        self._limit, self._output = limit, output
        self._before = account_of(rt)

    def of_pass(
        self, tokens: Sequence[int], rows: Sequence[torch.Tensor], num_proposed: int
    ) -> bool:
        """Tokens that came together, each with its logits; whether the answer is over with one.

        The account of the pass is the first one's: the others took no time.
        """
        result, output = self._result, self._output
        is_decoding = bool(result.token_ids)
        now_ns, after = self._rt.now(), account_of(self._rt)
        account = {kind: after[kind] - self._before[kind] for kind in TOKEN_KINDS}
        self._before = after
        is_over, num_taken = False, 0
        for token, row in zip(tokens, rows, strict=False):
            result.token_ns.append(now_ns)
            result.token_ids.append(token)
            result.account.append(account if num_taken == 0 else {})
            num_taken += 1
            if output.on_logits:
                output.on_logits(row)
            if output.on_token:
                output.on_token(token)
            is_over = should_stop(self._request, result, self._limit)
            if is_over:
                break
        if is_decoding and self._request.speculation is not None:
            result.proposed.append(num_proposed)
            result.accepted.append(min(num_taken, len(tokens) - 1))
        return is_over or (output.is_enough is not None and output.is_enough())


def feed(forward: Forward, new_ids: list[int], position: int, most_new: int) -> torch.Tensor:
    """Logits (v,) after `new_ids`, the first of which is at `position`.

    They are fed in steps of at most `most_new`; the KV cache holds what was fed before.
    """
    logits = forward(new_ids[:most_new], position)
    for first in range(most_new, len(new_ids), most_new):
        logits = forward(new_ids[first : first + most_new], position + first)
    return logits


def should_stop(request: Request, so_far: Generation, limit: int) -> bool:
    """At the limit, at an end-of-sequence token, or out of time with enough tokens."""
    count = len(so_far.token_ids)
    if count >= limit or so_far.token_ids[-1] in request.eos_ids:
        return True
    decoding_ns = so_far.token_ns[-1] - so_far.token_ns[0]
    out_of_time = request.max_decode_ns is not None and decoding_ns >= request.max_decode_ns
    return out_of_time and count >= request.min_new_tokens


def account_of(rt: Runtime) -> dict[str, int]:
    """What this device's time went to so far, in ns by kind."""
    return {kind: rt.log.totals_ns[kind] for kind in TOKEN_KINDS}
