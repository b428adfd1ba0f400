"""The perplexity of a text: the engine's is that of Transformers on the held values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from baselines.pipeline import PipelineSystem
from tests.helpers.command_line import report_of, run
from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job, model_of, run_ok
from tests.helpers.settings import settings_of
from tpi_bench.contract.request import Generation, Request, Workload, make_request
from tpi_bench.engine.sampling import Reader, Sampler, chooser
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host import cache
from tpi_bench.measure.metrics import perplexity_of
from tpi_bench.measure.perplexity import scores
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.texts import PAGE, read_text
from tpi_bench.models.hf_folder import held_folder
from tpi_bench.models.sources import DemoModel
from tpi_bench.models.tokenizer import encode_prompt


def transformers_perplexity(folder: Path, ids: tuple[int, ...]) -> float:
    """In fp32, all positions at once."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = torch.tensor([ids])
    with torch.inference_mode():
        log_probs = model(text).logits[0, :-1].double().log_softmax(-1)
    found = log_probs.gather(1, text[0, 1:, None])
    return math.exp(-float(found.mean()))


def engine_perplexity(
    system: object, folder: Path, cache_dir: Path, ids: tuple[int, ...], devices: int, weights: str
) -> float:
    request = Request(prompt_ids=ids[:1], num_new_tokens=len(ids) - 1, text_ids=ids[1:])
    job = make_job(system, folder, cache_dir, num_devices=devices, request=request, weights=weights)
    generation = run_ok(job).generation
    assert generation is not None
    assert generation.token_ids == list(ids[1:])
    return perplexity_of(generation)


@pytest.mark.parametrize(
    ("system", "devices", "weights"),
    [
        (TpiSystem(), 1, "float32"),
        (TpiSystem(collective="ring", window=2), 3, "q8"),
        (PipelineSystem(), 2, "q4"),
    ],
    ids=["one", "ring", "pipeline"],
)
def test_it_is_that_of_transformers(
    wide: Path, cache_dir: Path, system: object, devices: int, weights: str
) -> None:
    ids = prompt_of(60)
    expected = transformers_perplexity(held_folder(model_of(wide, weights), cache_dir), ids)
    found = engine_perplexity(system, wide, cache_dir, ids, devices, weights)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.product
@pytest.mark.parametrize("weights", ["float32", "q4"])
def test_of_the_page_by_a_real_model(cache_dir: Path, weights: str) -> None:
    folder = DemoModel().load(cache.cache_folder(None)).folder
    assert folder is not None
    ids = encode_prompt(folder, PAGE, False)
    assert 400 < len(ids) < 600
    ids = ids[:96]
    expected = transformers_perplexity(held_folder(model_of(folder, weights), cache_dir), ids)
    found = engine_perplexity(TpiSystem(), folder, cache_dir, ids, 1, weights)
    assert found == pytest.approx(expected, rel=1e-4)
    assert 5 < found < 100


def test_exp_of_the_mean() -> None:
    generation = Generation(token_ids=[1, 2], request_ns=0, token_ns=[1, 2], account=[])
    assert math.isnan(perplexity_of(generation))
    assert math.isnan(perplexity_of(None))
    generation.log_probs = [math.log(0.5), math.log(0.125)]
    assert perplexity_of(generation) == pytest.approx(4)


def test_a_reader_says_the_text_whatever_the_logits() -> None:
    reader = Reader([2, 0])
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    assert [reader(logits), reader(logits)] == [2, 0]
    assert reader.log_probs == pytest.approx([math.log(0.2), math.log(0.5)])
    assert isinstance(chooser(Request(prompt_ids=(1,), num_new_tokens=1)), Sampler)


def test_the_request_of_a_text() -> None:
    workload = Workload(text="page", text_tokens=6, ignore_eos=False, warmup_tokens=9)
    shape = {"vocab": 20, "context_length": 8, "eos_ids": (3,)}
    request = make_request(workload, list(range(12)), **shape)
    assert request.prompt_ids == (0,)
    assert request.text_ids == (1, 2, 3, 4, 5)
    assert (request.num_new_tokens, request.warmup_tokens, request.length) == (5, 5, 6)
    assert request.eos_ids == ()
    long = make_request(Workload(text="page"), list(range(12)), **shape)
    assert long.length == 8  # no more than the context
    with pytest.raises(ValueError, match="no two tokens"):
        make_request(workload, [1], **shape)
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        make_request(workload, [1, 20], **shape)
    with pytest.raises(ValueError, match="text_tokens=1 must be at least 2"):
        Workload(text="page", text_tokens=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["system=transformers"], "workload.text with system=transformers, a library"),
        (["check=true"], "check=true compares generated tokens"),
        (["testbed=virtual"], "testbed.cost=modelled has none"),
        (["model=debug"], "has random weights and no tokenizer"),
        (["workload.text=/nowhere.txt"], r"workload.text=/nowhere.txt cannot be read \(No such"),
    ],
)
def test_what_is_refused(cache_dir: Path, given: list[str], message: str) -> None:
    model = [] if any(text.startswith("model=") for text in given) else ["model=smollm2_135m"]
    settings = settings_of("workload=score", *model, *given)
    with pytest.raises(ValueError, match=message):
        prepare(settings)


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("déjà vu", encoding="utf-8")
    assert read_text(str(path)) == "déjà vu"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="give a text file in UTF-8"):
        read_text(str(path))


TINY = ("model=debug", "network=none", "testbed.num_devices=1")


def test_by_precision(cache_dir: Path) -> None:
    ids = ",".join(str(i) for i in prompt_of(12))
    done = run(
        "task=perplexity", *TINY, f"workload.prompt_ids=[{ids}]", "report=json", cache_dir=cache_dir
    )
    assert done.returncode == 0, done.stderr
    found = {score["weights"]: score for score in report_of(done)["scores"]}
    assert list(found) == ["float32", "float16", "bfloat16", "q8", "q4"]
    assert [score["dtype"] for score in found.values()] == [
        "float32",
        "float16",
        "bfloat16",
        "float32",
        "float32",
    ]
    assert found["float32"]["ratio"] == 1
    assert all(score["num_tokens"] == 11 for score in found.values())
    assert all(0.9 < score["ratio"] < 1.1 for score in found.values())
    sizes = [score["weight_bytes"] for score in found.values()]
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * sizes[3] > 1.9 * sizes[4]
    json.dumps(found)


def test_a_precision_that_cannot_be_is_named(cache_dir: Path) -> None:
    """And the asked one stands beside fp32 alone."""
    settings = settings_of(
        *TINY,
        "model.intermediate=100",
        "model.weights=q4",
        "workload.prompt_ids=[1,2,3]",
        f"cache_dir={cache_dir}",
    )
    first, second = scores(settings)
    assert (first.weights, first.error) == ("float32", None)
    assert second.weights == "q4"
    assert "rows of 100" in (second.error or "")
