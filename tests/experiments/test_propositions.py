"""The paper's propositions, with its own numbers."""

from __future__ import annotations

from experiments import propositions

# 4 laptops, Llama 2-7B, p = 1/4, window 4: the paper's measured times in ms.
PAPER = {"t_attn": 11, "t_ffn": 17, "t_ar": 14, "tau_attn": 18, "tau_ffn": 30}


def test_the_papers_case_is_loosely_but_not_tightly_steady() -> None:
    assert propositions.is_loosely_steady(**PAPER, num_layers=32)
    assert not propositions.is_tightly_steady(**PAPER)
    assert propositions.is_tightly_steady(**PAPER | {"t_ar": 19})
    assert not propositions.is_loosely_steady(**PAPER | {"t_ar": 1}, num_layers=32)


def test_retention_helps_a_disk_that_is_a_little_slow() -> None:
    slow = PAPER | {"tau_ffn": 45}
    assert not propositions.is_steady_with_retention(**slow, num_layers=32, period=1000)
    assert propositions.is_steady_with_retention(**slow, num_layers=32, period=2)


def test_peak_memory_of_llama2_70b() -> None:
    shape = {"h": 8192, "v": 32000, "a": 64, "b": 8, "s": 28672, "p": 1 / 8}
    master = propositions.window_peak_parameters(**shape, window=2, is_master=True)
    assert master == 2 * 8192 * 32000 + 8192
    worker = propositions.window_peak_parameters(**shape, window=2, is_master=False)
    attention = 2 * (64 + 8) * 8192**2 / 8 / 64 + 8192
    assert worker == attention + 3 * 8192 * 28672 / 8 + 8192
