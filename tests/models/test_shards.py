"""Block files: format, reuse, damage, streaming."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.helpers.running import make_job
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models import block_files, sharder
from tpi_bench.models.block_layout import planned_blocks
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.sharder import find_shards, shard, shard_folder
from tpi_bench.models.synthetic import SyntheticCheckpoint


def shards_of(
    folder: Path, cache_dir: Path, num_devices: int
) -> tuple[Path, FolderCheckpoint, Plan]:
    checkpoint = FolderCheckpoint(folder, read_config(folder))
    plan = TpiSystem().plan(checkpoint.config, Site(proportions=[1.0] * num_devices))
    target = shard_folder(cache_dir, checkpoint, plan, "float32", "float32")
    shard(target, checkpoint, plan, "float32", "float32")
    return target, checkpoint, plan


def test_files_are_aligned_safetensors_with_the_right_slices(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    target, _checkpoint, _plan = shards_of(checkpoints["biases"], tmp_path, 2)
    manifest, bad = find_shards(target)
    assert manifest is not None
    assert not bad
    whole = {}
    with safe_open(checkpoints["biases"] / "model.safetensors", "pt") as file:
        whole = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    at = "model.layers.1."
    with safe_open(target / "rank1.attn_1.safetensors", "pt") as file:
        names = set(file.keys())
        qkv, o = file.get_tensor("qkv"), file.get_tensor("o")
    # 9 heads of 8 on 2 devices: rank 1 has heads 5 to 8 and KV heads 1 and 2
    q, k, v = (whole[f"{at}self_attn.{n}_proj.weight"] for n in "qkv")
    assert torch.equal(qkv, torch.cat((q[40:72], k[8:24], v[8:24])))
    assert torch.equal(o, whole[f"{at}self_attn.o_proj.weight"][:, 40:72])
    assert "o_bias" not in names
    assert "qkv_bias" in names
    with safe_open(target / "rank0.ffn_1.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("down"), whole[f"{at}mlp.down_proj.weight"][:, :50])
        assert torch.equal(file.get_tensor("down_bias"), whole[f"{at}mlp.down_proj.bias"])
    for name, entry in manifest["files"].items():
        assert entry["data_offset"] % 4096 == 0
        assert entry["nbytes"] % 4096 == 0
        assert (target / name).stat().st_size == entry["data_offset"] + entry["nbytes"]
        assert all(view["begin"] % 64 == 0 for view in entry["tensors"].values())
        assert block_files.file_crc(target / name) == entry["crc32"]


@pytest.mark.parametrize("name", ["biases", "tied"])
def test_planned_blocks_are_those_that_are_written(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """But for their paths, of which tied ends have one."""
    target, checkpoint, plan = shards_of(checkpoints[name], tmp_path, 3)
    manifest, _ = find_shards(target)
    assert manifest is not None
    for rank, planned in enumerate(planned_blocks(checkpoint.config, plan, "float32", "float32")):
        written = block_files.rank_blocks(target, manifest, rank)
        assert [replace(b, path="") for b in planned] == [replace(b, path="") for b in written]
        assert len({b.path for b in planned}) == len({b.path for b in written})


def test_a_second_run_reuses_the_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    target, checkpoint, plan = shards_of(checkpoints["gqa"], tmp_path, 2)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    shard(target, checkpoint, plan, "float32", "float32")
    assert before == {path: path.stat().st_mtime_ns for path in target.iterdir()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff\xff")


@pytest.mark.parametrize(
    ("harm", "reason"), [(truncate, "truncated"), (alter, "altered"), (Path.unlink, "missing")]
)
def test_damaged_files_are_named_and_made_again(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, harm, reason: str
) -> None:
    target, checkpoint, plan = shards_of(checkpoints["gqa"], tmp_path, 2)
    victim = target / "rank1.ffn_2.safetensors"
    good = victim.read_bytes()
    untouched = (target / "rank0.ffn_2.safetensors").stat().st_mtime_ns
    harm(victim)
    shard(target, checkpoint, plan, "float32", "float32")
    assert str(victim) in (message := capsys.readouterr().err)
    assert reason in message
    assert victim.read_bytes() == good
    assert (target / "rank0.ffn_2.safetensors").stat().st_mtime_ns == untouched


def test_a_copied_cache_is_not_damage(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    target, _, _ = shards_of(checkpoints["gqa"], tmp_path, 2)
    for path in target.glob("*.safetensors"):
        path.touch()
    manifest, bad = find_shards(target)
    assert not bad
    assert json.loads((target / "manifest.json").read_text()) == manifest


def test_a_copied_cache_may_be_read_only(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CI brings one back; root could write there all the same."""
    target, _, _ = shards_of(checkpoints["gqa"], tmp_path, 2)
    before = (target / "manifest.json").read_text()
    for path in target.glob("*.safetensors"):
        path.touch()

    def refuse(path: Path, value: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache, "write_json", refuse)
    manifest, bad = find_shards(target)
    assert not bad
    assert manifest is not None
    assert (target / "manifest.json").read_text() == before


def test_another_plan_or_dtype_has_another_folder(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = FolderCheckpoint(checkpoints["gqa"], read_config(checkpoints["gqa"]))
    folders = {
        shard_folder(
            tmp_path,
            checkpoint,
            TpiSystem().plan(checkpoint.config, Site(proportions=[1.0] * n)),
            dtype,
            dtype,
        )
        for n in (1, 2, 3)
        for dtype in ("float32", "bfloat16")
    }
    assert len(folders) == 6


def test_shared_layers_are_few_files_read_every_time(tmp_path: Path) -> None:
    config = ModelConfig(
        num_layers=20,
        hidden=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate=96,
        vocab=128,
        context_length=64,
    )
    checkpoint = SyntheticCheckpoint(config, seed=0, share_layers=True)
    plan = TpiSystem().plan(config, Site(proportions=[1.0, 1.0]))
    target = shard_folder(tmp_path, checkpoint, plan, "float32", "float32")
    shard(target, checkpoint, plan, "float32", "float32")
    assert len(list(target.glob("*.safetensors"))) == 6  # two blocks a device, and the two ends
    manifest, _ = find_shards(target)
    assert manifest is not None
    blocks = block_files.rank_blocks(target, manifest, 1)
    assert len(blocks) == 40
    assert len({block.key for block in blocks}) == 40
    assert len({block.path for block in blocks}) == 2


def test_a_read_only_or_full_cache_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the cache folder .*cache_dir=DIR"):
        cache.cache_folder(str(blocked / "below"))
    with pytest.raises(ValueError, match=r"needs .* GB in .*, which has .* GB free"):
        cache.require_space(tmp_path, 1 << 60, "this")


def test_an_interrupted_build_leaves_nothing_half_written(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = FolderCheckpoint(checkpoints["gqa"], read_config(checkpoints["gqa"]))
    plan = TpiSystem().plan(checkpoint.config, Site(proportions=[1.0, 1.0]))
    target = shard_folder(tmp_path, checkpoint, plan, "float32", "float32")
    real = FolderCheckpoint.read_rows

    def stop_at_layer_2(self: FolderCheckpoint, name: str, start: int, stop: int):
        if "layers.2." in name:
            raise KeyboardInterrupt
        return real(self, name, start, stop)

    monkeypatch.setattr(FolderCheckpoint, "read_rows", stop_at_layer_2)
    with pytest.raises(KeyboardInterrupt):
        shard(target, checkpoint, plan, "float32", "float32")
    assert not list(target.glob("*.tmp"))
    manifest, bad = find_shards(target)
    assert manifest is not None
    assert "rank0.attn_2.safetensors" in bad
    assert "rank0.attn_1.safetensors" not in bad
    kept = (target / "rank0.attn_1.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(FolderCheckpoint, "read_rows", real)
    shard(target, checkpoint, plan, "float32", "float32")
    assert find_shards(target)[1] == {}
    assert (target / "rank0.attn_1.safetensors").stat().st_mtime_ns == kept


def test_what_is_whole_is_noted_while_more_is_written(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that is killed has no time to say what it has made."""
    config = read_config(checkpoints["gqa"])
    checkpoint = FolderCheckpoint(checkpoints["gqa"], config)
    plan = TpiSystem().plan(config, Site(proportions=[1.0]))
    noted: list[int] = []
    write = sharder._write_file

    def watched(path: Path, *args: Any) -> Any:
        manifest = tmp_path / "manifest.json"
        found = json.loads(manifest.read_text())["files"] if manifest.exists() else {}
        noted.append(len(found))
        return write(path, *args)

    monkeypatch.setattr(sharder, "_write_file", watched)
    monkeypatch.setattr(sharder, "_NOTED_EVERY_S", -1.0)
    shard(tmp_path, checkpoint, plan, "float32", "float32")
    assert len(noted) > 2
    assert noted == list(range(len(noted)))


def test_jobs_carry_blocks_in_execution_order(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    request = Request(prompt_ids=(1,), num_new_tokens=1)
    job = make_job(TpiSystem(), checkpoints["gqa"], tmp_path, num_devices=2, request=request)
    layers = [f"{kind}_{layer}" for layer in range(5) for kind in ("attn", "ffn")]
    assert [b.key for b in job.blocks[0]] == ["input", *layers, "output"]
    assert [b.key for b in job.blocks[1]] == layers


def _peak_of_sharding(cache_dir: Path) -> tuple[int, int, int]:
    """Shard a layer of the Llama 2-7B shape: this process's resident bytes before, at peak."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    config = ModelConfig(
        num_layers=1,
        hidden=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        intermediate=11008,
        vocab=1000,
        context_length=64,
    )
    checkpoint = SyntheticCheckpoint(config, seed=0, share_layers=True)
    plan = TpiSystem().plan(config, Site(proportions=[1.0, 1.0]))
    shard(
        shard_folder(cache_dir, checkpoint, plan, "float32", "float32"),
        checkpoint,
        plan,
        "float32",
        "float32",
    )
    largest = 11008 // 2 * 2 * 4096 * 4  # gate and up of one device
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, largest


def test_the_sharder_streams(tmp_path: Path) -> None:
    """0.81 GB of weights pass through a process that stays near what torch alone takes."""
    before, peak, largest = in_helper(_peak_of_sharding, tmp_path)
    assert peak < 400e6 + 2 * largest  # what is promised
    assert peak - before < largest  # what streaming gives: slices of what one device gets
