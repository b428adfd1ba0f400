"""From logits to a token: greedy, or temperature with top-k and top-p, or the next of a given text.

Runs on the master alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tpi_bench.contract.request import Request, Sampling
from tpi_bench.engine.compiled import is_traced


class Reader:
    """Each token is the text's next; how likely the logits found it is kept."""

    def __init__(self, text_ids: Sequence[int]) -> None:
        self._following = iter(text_ids)
        self.log_probs: list[float] = []

    def __call__(self, logits: torch.Tensor) -> int:
        """logits (v,) in fp32 -> token id. Meta tensors find nothing likely."""
        token = next(self._following)
        if not logits.is_meta:
            self.log_probs.append(float(logits.log_softmax(-1)[token]))
        return token


def chooser(request: Request) -> Sampler | Reader:
    """What makes a request's tokens of logits."""
    return Reader(request.text_ids) if request.text_ids else Sampler(request.sampling)


class Sampler:
    """Stateful only in its seeded generator: the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.log_probs: list[float] = []
        self._sampling = sampling
        self._generator = torch.Generator("cpu").manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """logits (v,) in fp32 -> token id. Meta tensors hold no values: their token is 0."""
        if self._sampling.temperature == 0 or logits.is_meta:
            return greedy(logits)
        shares = torch.softmax(
            filter_logits(logits / self._sampling.temperature, self._sampling), dim=-1
        )
        return int(torch.multinomial(shares, 1, generator=self._generator))


def greedy(logits: torch.Tensor) -> int:
    """logits (v,) -> the likeliest token id; 0 of meta tensors."""
    if is_traced(logits):
        best = logits.argmax()
        return 0 if best.is_meta else int(best)
    return int(logits.numpy().argmax())  # a tenth of the time that torch's takes


def filter_logits(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set to -inf what top-k leaves out, then what lies beyond the top-p share of the rest."""
    if 0 < sampling.top_k < logits.numel():
        threshold = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        shares = torch.softmax(ordered, dim=-1)
        beyond = shares.cumsum(-1) - shares >= sampling.top_p  # the first token always stays
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits
