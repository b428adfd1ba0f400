"""The request loop every system shares: prefill, decode, sample, stop, and the times.

One definition of TTFT and token latency for all systems (`measure/metrics.py`): the clock is read
when the request is taken up and after each sampled token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tpi_bench.contract.job import NextTurn, Output
from tpi_bench.contract.request import Generation, Request, Turn
from tpi_bench.contract.runtime import TOKEN_KINDS, Runtime

if TYPE_CHECKING:
    import torch

# (new token ids, position of the first) -> logits (v,) of the last one
Forward = Callable[[list[int], int], "torch.Tensor"]


def generate(rt: Runtime, forward: Forward, request: Request, output: Output) -> Generation:
    """Warm up, then answer the request, with one forward pass a token. Runs on the master."""
    if output.next_turn is not None:
        return converse(rt, forward, request, output, output.next_turn)
    return warmed_up(request, output, functools.partial(answer, rt, forward, request))


def converse(
    rt: Runtime, forward: Forward, request: Request, output: Output, next_turn: NextTurn
) -> Generation:
    """Answer turn after turn from one KV cache; the last answer.

    `request` says how to sample and stop; its prompt warms up and is forgotten.
    """
    last = answer(rt, forward, request, max(1, request.warmup_tokens), Output())
    turn = next_turn(None)
    while turn is not None:
        last = answer(rt, forward, request, turn.num_new_tokens, output, turn)
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
) -> Generation:
    """Up to `limit` tokens from the prompt, or from a turn that follows what is cached."""
    from tpi_bench.engine.sampling import chooser

    choose = chooser(request)
    result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
    result.log_probs = choose.log_probs
    new_ids, position = list(request.prompt_ids), 0
    if turn is not None:
        new_ids, position = list(turn.token_ids), turn.position
    before = account_of(rt)
    while True:
        logits = feed(forward, new_ids, position, request.most_new)
        if logits.dim() != 1:
            raise ValueError(
                f"a forward pass gave a tensor of shape {tuple(logits.shape)}; it must give the "
                "logits (v,) of the last position, as DeviceModel.logits does"
            )
        token = rt.compute(("sample", logits.shape[0]), functools.partial(choose, logits))
        result.token_ns.append(rt.now())
        result.token_ids.append(token)
        after = account_of(rt)
        result.account.append({kind: after[kind] - before[kind] for kind in TOKEN_KINDS})
        before = after
        if output.on_logits:
            output.on_logits(logits)
        if output.on_token:
            output.on_token(token)
        if should_stop(request, result, limit):
            return result
        position += len(new_ids)
        new_ids = [token]


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
