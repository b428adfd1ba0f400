"""What people type: prompts as text, options anywhere, names that do not exist, help, version."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tests.helpers.command_line import ROOT, run, run_module
from tpi_bench import load
from tpi_bench.app.arguments import as_typed, for_hydra, options_last, plain_text
from tpi_bench.app.compose import build_settings
from tpi_bench.app.sweeper import CONFIG_FOLDER
from tpi_bench.app.unknown import explained

TEXTS = [
    "It's late, isn't it? a=b ${x} \"q\" é",
    "null",
    "12",
    " a ",
    "a\nb\\",
    "$${x}\\${y}",
    "~x",
    "-x",
    "[1,2]",
    "a,b",
    "a~b #c {d:e} (f) !",
    "\U0001f600",
    "=",
]


def nothing() -> str:
    raise AssertionError("standard input was not asked for")


def settings_typed(*typed: str, stdin: str | None = None):
    read = nothing if stdin is None else io.StringIO(stdin).read
    arguments = for_hydra(["model=debug", *typed, "results_dir=x"], read)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return build_settings(compose("config", overrides=arguments), arguments)


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_text(text: str) -> None:
    settings = settings_typed(f"prompt={text}")
    assert settings.workload.prompt == text
    assert settings.raw["prompt"] == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_one_value_in_a_sweep(text: str) -> None:
    """Its commas are no choices, and it comes through the sweeper as through Hydra."""
    (argument,) = for_hydra([f"prompt={text}"], nothing)
    parser = OverridesParser.create()
    override = parser.parse_override(argument)
    assert not override.is_sweep_override()
    of_the_job = f"prompt={override.get_value_element_as_str()}"  # as the sweeper hands it on
    assert plain_text(parser.parse_override(of_the_job).value()) == text


def test_a_prompt_from_standard_input_and_from_a_file(tmp_path: Path) -> None:
    text = 'two lines,\nand "quotes"'
    assert settings_typed("prompt=-", stdin=f"{text}\n").workload.prompt == text
    file = tmp_path / "prompt.txt"
    file.write_text(f"{text}\n", encoding="utf-8")
    assert settings_typed(f"prompt_file={file}").workload.prompt == text


@pytest.mark.parametrize(
    ("typed", "stdin", "line"),
    [
        (["prompt="], None, "the prompt is empty; give prompt="),
        (["prompt=  "], None, "the prompt is empty"),
        (["prompt=-"], "\n", "the prompt is empty"),
        (["prompt_file=/nowhere"], None, "prompt_file=/nowhere cannot be read .No such file"),
        (["prompt=a", "prompt_file=b"], None, "are both given; leave out one of them"),
        (["prompt=\udce9"], None, "no text in UTF-8"),
        (["--prompt", "a"], None, "there is no option --prompt; values are given as KEY=VALUE"),
        (["generate"], None, "'generate' is no KEY=VALUE; give for example task=generate"),
        (["--config-dir"], None, "--config-dir wants a value behind it"),
    ],
)
def test_what_cannot_be_read(typed: list[str], stdin: str | None, line: str) -> None:
    read = nothing if stdin is None else io.StringIO(stdin).read
    with pytest.raises(ValueError, match=line):
        for_hydra(typed, read)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot be read .*; give a text file in UTF-8"):
        for_hydra([f"prompt_file={file}"], nothing)


def test_a_prompt_that_was_stored_is_left_as_it_is() -> None:
    """What `resume=` brings back, or a message says to type again."""
    stored = for_hydra(["prompt=It's late"], nothing)
    assert for_hydra(stored, nothing) == stored == ["prompt=%text:It%27s late"]


SIGNS = ["a (1), [b] {c}", 'it\'s ${x} \\ "d"', "1", "true", "a=b,c", " é~#", "%41"]


@pytest.mark.parametrize("name", SIGNS)
def test_a_path_is_text(name: str) -> None:
    """Whatever its signs mean to Hydra; and so it is typed again from what was stored."""
    for key in ("output_dir", "results_dir", "cache_dir", "resume"):
        (argument,) = for_hydra([f"{key}={name}"], nothing)
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = compose("config", overrides=["model=debug", "results_dir=x", argument])
            assert build_settings(composed).raw[key] == name
        parser = OverridesParser.create()
        of_the_job = parser.parse_override(argument).get_value_element_as_str()
        assert plain_text(parser.parse_override(f"{key}={of_the_job}").value()) == name
        assert for_hydra([argument], nothing) == [argument]
        for text in (argument, f"{key}={of_the_job}"):
            assert as_typed(text) == f"{key}={name}"


def test_a_path_of_letters_stays_as_it_is() -> None:
    typed = ["output_dir=/tmp/a-b_c.d/e f", "cache_dir=null", "resume=", "model.path=org/name:x"]
    assert for_hydra(typed, nothing) == typed
    quoted = ["output_dir='a, b'", 'model.path="a (b)"', "model.path=choice(a,b)"]
    assert for_hydra(quoted, nothing) == quoted  # by who knows the grammar


def test_of_paths_between_commas_each_is_text(tmp_path: Path) -> None:
    """But for one that is there with its comma."""
    typed = for_hydra(["model.path=/a (1),/b,~/c"], nothing)
    assert typed == [f"model.path=%text:/a %281%29,/b,{Path.home()}/c"]
    one = tmp_path / "a,b"
    one.mkdir()
    (argument,) = for_hydra([f"model.path={one}"], nothing)
    assert plain_text(argument.removeprefix("model.path=")) == str(one)


def test_signs_in_every_path_of_a_sweep(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made, shown, stopped short, taken up again with the line that was said, and kept."""
    model = shutil.copytree(checkpoints["gqa"], tmp_path / "model (7B), [v2]")
    folder, cache = tmp_path / "out (1), it's", tmp_path / "cache [x]"
    typed = ["-m", "task=measure", "testbed=virtual", "model=hf", f"model.path={model}"]
    typed += ["workload.prompt_ids=[1]", "testbed.num_devices=1,2", f"output_dir={folder}"]
    done = run(*typed, cache_dir=cache)
    assert done.returncode == 0, done.stderr
    rows = load(folder).rows
    assert [row.num_devices for row in rows] == [1, 2]
    assert f"model.path={model}" in shlex.split(rows[0].overrides or "")
    assert rows[0].model == model.name
    next((folder / "points").glob("*.json")).unlink()
    begun = run(*typed, cache_dir=cache)
    assert begun.returncode == 2
    (_, _, again) = begun.stderr.strip().partition("; go on with ")
    done = run(*shlex.split(again), cache_dir=cache)
    assert done.returncode == 0, done.stderr
    assert len(load(folder)) == 2
    assert not (tmp_path / "out").exists()


def test_signs_in_the_name_of_a_prompts_file(tmp_path: Path) -> None:
    file = tmp_path / "a (1), [b]=c.txt"
    file.write_text("said", encoding="utf-8")
    assert settings_typed(f"prompt_file={file}").workload.prompt == "said"


def test_options_may_stand_anywhere() -> None:
    assert options_last(["-m", "a=1", "resume=x"]) == ["a=1", "resume=x", "-m"]
    assert for_hydra(["a=1", "-m", "b=2,3"], nothing) == ["a=1", "b=2,3", "-m"]
    typed = ["--config-dir", "x", "a=1", "--info", "all", "--cfg=job", "~b"]
    sorted_ = ["a=1", "~b", "--config-dir", "x", "--info", "all", "--cfg=job"]
    assert for_hydra(typed, nothing) == sorted_


def test_a_sweep_with_its_option_in_the_middle(cache_dir: Path, tmp_path: Path) -> None:
    done = run(
        *("task=measure", "testbed=virtual", "-m", "model=debug", "workload.prompt_tokens=3"),
        *("testbed.num_devices=1,2", "name=sweep", f"results_dir={tmp_path}"),
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweep").iterdir()
    assert len(list((folder / "points").glob("*.json"))) == 2


def test_latency_swept_on_one_device_is_one_point_and_said(cache_dir: Path, tmp_path: Path) -> None:
    done = run(
        *("-m", "task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=3"),
        *("testbed.num_devices=1", "network.link_latency_ms=0,1,5", "name=sweep"),
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweep").iterdir()
    assert len(list((folder / "points").glob("*.json"))) == 1
    for latency in (1, 5):
        assert f"note: network.link_latency_ms={latency} changes nothing with one device" in (
            done.stderr
        )


@pytest.mark.parametrize("typed", [["--help"], ["-h"], []])
def test_an_experiment_says_how_it_is_drawn_again(typed: list[str]) -> None:
    command = [sys.executable, "-m", "experiments.fig_latency", *typed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == (0 if typed else 2)
    said = done.stdout if typed else done.stderr
    assert "usage: python -m experiments.fig_latency [-h] folder" in said


def test_version_is_ours() -> None:
    command = [sys.executable, "-m", "tpi_bench", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "tpi_bench 0.1.0\n"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("model.path=~/a b.gguf", "model.path=HOME/a b.gguf"),
        ("model.path=~/a,/b/~/c,~/d", "model.path=HOME/a,%text:/b/%7E/c,HOME/d"),
        ("results_dir=~x", "results_dir=%text:%7Ex"),
        ("workload.text=~/a/b,c", "workload.text=HOME/a/b,c"),
        ("prompt=~/a", "prompt=%text:%7E/a"),
        ("~timeout_s", "~timeout_s"),
    ],
)
def test_home_in_a_path(typed: str, read: str) -> None:
    """A shell leaves the tilde behind an equals sign alone, and Hydra's grammar refuses it."""
    assert for_hydra([typed], input) == [read.replace("HOME", str(Path.home()))]


def test_a_python_without_the_packages_is_told_of_the_environment() -> None:
    """As one types after `make`, without its environment; -S leaves installed packages out."""
    command = [sys.executable, "-S", "-m", "tpi_bench"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named ")
    assert "use .venv/bin/python, which make install makes" in done.stderr
    assert done.stderr.count("\n") == 1


def sentence_of(*typed: str) -> str | None:
    """What is said where Hydra cannot compose what was typed."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        try:
            compose("config", overrides=[*typed, "results_dir=x"])
        except HydraException as error:
            return explained(error, typed)
    return None


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["system.windw=2"], "there is no system.windw; did you mean system.window?"),
        (
            ["model.path=x"],
            "there is no model.path with model=smollm2_135m; it is a setting of model=hf: "
            "add model=hf",
        ),
        (["model.pth=x"], "there is no model.pth; did you mean model.path, of model=hf?"),
        (
            ["system=galaxy", "system.planner=x"],
            "there is no system.planner with system=galaxy; it is a setting of "
            "system=jupiter, pipeline, prima, edgeshard: add system=jupiter",
        ),
        (["network.link_latency=1"], "there is no network.link_latency; did you mean "),
        (["prmpt=x"], "there is no prmpt; did you mean prompt?"),
        (["num_devices=3"], "there is no num_devices; did you mean testbed.num_devices?"),
        (["dtype=bfloat16"], "there is no dtype; did you mean model.dtype?"),
        (["path=DIR"], "there is no path; did you mean model.path?"),
        (["memory_mb=400"], "there is no memory_mb; did you mean device.memory_mb?"),
        (
            ["model=/home/me/llama"],
            "there is no model=/home/me/llama; a model of yours is model=hf "
            "model.path=/home/me/llama",
        ),
        (["model=tiny.gguf"], "a model of yours is model=hf model.path=tiny.gguf"),
        (["device.paper_emulated.coers=1"], "did you mean device.paper_emulated.cores?"),
        (["device.raspberry_pi_4.cores=1"], "add device=raspberry_pi_4"),
        (["device.raspbery_pi_4.cores=1"], "did you mean device.raspberry_pi_4?"),
        (["system=tpi_windo2"], "did you mean system=tpi_window2? It is one of accelerate, "),
        (["system=xyz"], "there is no system=xyz; there are accelerate, "),
        (["device=thinkpad_x220"], ". One of yours is described as device=[NAME(cores,GB,GB/s,"),
        (["model=8B"], ". A model of yours is model=hf model.path=FOLDER or FILE.gguf"),
        (
            ["task=advise", "network=wifi,switch"],
            "network=wifi,switch has several values; task=advise takes one: ask it once for each",
        ),
    ],
)
def test_the_nearest_name(typed: list[str], line: str) -> None:
    said = sentence_of(*typed)
    assert said is not None
    assert line in said


def test_of_several_systems_the_one_that_lacks_it_is_named() -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("config", overrides=["system=galaxy", "system.window=2"])
        said = explained(caught.value, ["system=tpi,galaxy", "system.window=2"])
    assert said is not None
    assert said.startswith("there is no system.window with system=galaxy; it is a setting of ")


def test_other_errors_are_not_explained() -> None:
    assert explained(ValueError("x"), []) is None
    assert sentence_of("system=tpi") is None


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("+system.windw=2", r"there is no system\.windw; did you mean system\.window\?"),
        ("+nme=x", r"there is no nme; did you mean name\?"),
    ],
)
def test_what_is_added_must_exist(typed: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        settings_typed(typed, "workload.prompt_ids=[1]")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("system=tpi,pipeline", "add -m to run each of them"),
        (
            "testbed.proportions=1,2",
            "add -m to run each of them; a list is written testbed.proportions=[1,2]",
        ),
    ],
)
def test_several_values_without_a_sweep(typed: str, said: str) -> None:
    with (
        initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"),
        pytest.raises(HydraException) as caught,
    ):
        compose("config", overrides=[typed])
    assert explained(caught.value, [typed]) == f"{typed} has several values; {said}"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "system=tpi,dllama system.strict=true",
            "there is no system.strict with system=tpi; it is a setting of system=dllama: "
            "add system=dllama",
        ),
        ("system=tpi,dllama workload.nonsense=1", "there is no workload.nonsense; there are "),
        ("system=tpi,nonsense", "there is no system=nonsense; "),
    ],
)
def test_what_is_wrong_in_a_sweep_is_said(typed: str, said: str, cache_dir: Path) -> None:
    """It is a sweep already, so not to add -m."""
    typed_all = ("-m", "task=measure", "model=debug", "workload.prompt_tokens=4", *typed.split())
    done = run(*typed_all, cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")


def in_shell(*typed: str, streams: str) -> subprocess.CompletedProcess[str]:
    """With standard streams as a service or a script of the shell gives them."""
    command = shlex.join([sys.executable, "-m", "tpi_bench", *typed])
    return subprocess.run(
        ["bash", "-c", f"{command} {streams}"], capture_output=True, text=True, cwd=ROOT
    )


def test_what_cannot_be_said_changes_neither_status_nor_answer() -> None:
    done = in_shell("task=tell", "report=json", streams="2> /dev/full")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_reason"] == "usage"


def test_a_sweep_whose_reader_has_gone_ends_well(cache_dir: Path, tmp_path: Path) -> None:
    point = ("testbed=virtual", "model=debug", "workload.prompt_tokens=3", "system=tpi,pipeline")
    given = ("-m", "task=measure", *point, f"output_dir={tmp_path / 'out'}")
    assert run(*given, cache_dir=cache_dir).returncode == 0
    streams = "| true; echo ${PIPESTATUS[0]}"
    done = in_shell(f"resume={tmp_path / 'out'}", f"cache_dir={cache_dir}", streams=streams)
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr
    assert "error: " not in done.stderr


def test_a_swept_limit_of_time_is_refused(cache_dir: Path) -> None:
    given = ("-m", "task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=3")
    done = run(*given, "timeout_s=60,0.1", cache_dir=cache_dir)
    assert done.returncode == 2
    assert "timeout_s=0.1 and timeout_s=60: how long a point may take" in done.stderr


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["prompt=-"], "error: the prompt is empty; give "),
        (["task=tell"], "error: task=tell is unknown; choose one of generate, "),
    ],
)
def test_standard_input_may_be_closed(typed: list[str], line: str) -> None:
    done = in_shell(*typed, streams="<&-")
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_all_streams_may_be_closed() -> None:
    done = in_shell("task=tell", "report=json", streams="<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_standard_output_keeps_the_status() -> None:
    done = in_shell("task=tell", "report=json", streams="> /dev/full")
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("error: task=tell is unknown")
    assert second == "error: cannot write to standard output: No space left on device"


def test_what_cannot_be_drawn_is_bad_usage() -> None:
    done = run_module("experiments.fig_latency", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nowhere holds no runs.parquet; give a results folder")
