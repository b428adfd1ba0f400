"""The request loop every system shares: prefill, decode, sample, stop, and the times.

One definition of TTFT and token latency for all systems (docs in `metrics.py`): the clock is read
when the request is taken up and after each sampled token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tpi_bench.runtime import TOKEN_KINDS, Runtime
from tpi_bench.workload import Generation, Request

if TYPE_CHECKING:
    import torch

# (new token ids, position of the first) -> logits (v,) of the last one
Forward = Callable[[list[int], int], "torch.Tensor"]


def generate(
    rt: Runtime,
    forward: Forward,
    request: Request,
    on_token: Callable[[int], None] | None = None,
    on_logits: Callable[[torch.Tensor], None] | None = None,
) -> Generation:
    """Warm up, then answer the request. Runs on the master."""
    warmup_ttft_ns = None
    if request.warmup_tokens:
        warmup = _answer(rt, forward, request, request.warmup_tokens, None, None)
        warmup_ttft_ns = warmup.token_ns[0] - warmup.request_ns
    result = _answer(rt, forward, request, request.num_new_tokens, on_token, on_logits)
    result.warmup_ttft_ns = warmup_ttft_ns
    return result


def _answer(
    rt: Runtime,
    forward: Forward,
    request: Request,
    limit: int,
    on_token: Callable[[int], None] | None,
    on_logits: Callable[[torch.Tensor], None] | None,
) -> Generation:
    from tpi_bench.sampling import Sampler

    sampler = Sampler(request.sampling)
    result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
    new_ids, position = list(request.prompt_ids), 0
    before = account_of(rt)
    while True:
        logits = forward(new_ids, position)
        token = rt.compute(("sample", logits.shape[0]), functools.partial(sampler, logits))
        result.token_ns.append(rt.now())
        result.token_ids.append(token)
        after = account_of(rt)
        result.account.append({kind: after[kind] - before[kind] for kind in TOKEN_KINDS})
        before = after
        if on_logits:
            on_logits(logits)
        if on_token:
            on_token(token)
        if should_stop(request, result, limit):
            return result
        position += len(new_ids)
        new_ids = [token]


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
