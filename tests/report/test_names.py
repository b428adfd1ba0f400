"""Names as people write them, in figures and tables."""

from __future__ import annotations

import pytest

from tpi_bench.report import names


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("llama2_70b", "Llama 2-70B"),
        ("llama3.1_8b", "Llama 3.1-8B"),
        ("llama_30b", "Llama-30B"),
        ("yi_34b", "Yi-34B"),
        ("qwen2.5_14b", "Qwen 2.5-14B"),
        ("tinyllama_1.1b", "TinyLlama-1.1B"),
        ("smollm2_135m", "SmolLM2-135M"),
        ("debug", "debug"),
        ("hf: my/llama2_7b", "hf: my/llama2_7b"),
    ],
)
def test_a_model(model: str, written: str) -> None:
    assert names.model_name(model) == written


@pytest.mark.parametrize(
    ("devices", "written"),
    [
        ("8 x paper_emulated", "8 of the paper's devices"),
        ("paper_emulated", "one of the paper's devices"),
        ("1 x paper_emulated", "one of the paper's devices"),
        ("dell_i7_1165g7", "dell_i7_1165g7"),
        ("2 x phone_2024, desktop", "2 x phone_2024, desktop"),
    ],
)
def test_devices(devices: str, written: str) -> None:
    assert names.device_name(devices) == written


def test_a_precision() -> None:
    assert [names.precision_name(name) for name in ("float32", "bfloat16", "q4", "other")] == [
        "fp32",
        "bf16",
        "q4",
        "other",
    ]


def test_counts_have_the_words_that_go_with_them() -> None:
    assert [names.counted(count, "way") for count in (0, 1, 2)] == ["0 ways", "1 way", "2 ways"]
    assert names.counted(1, "was run", "were run") == "1 was run"
    assert names.counted(3, "was run", "were run") == "3 were run"
