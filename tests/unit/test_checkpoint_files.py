import hashlib
import json
import os
import stat
import tracemalloc
from pathlib import Path

import pytest
import torch

from sampled_episodes import small_policy
from simplevla.training.checkpoint import atomic_folder, list_checkpoints, load_latest, save_checkpoint

TENSORS = {"exp_avg/linear.weight": torch.arange(6.0).reshape(2, 3), "step/linear.weight": torch.tensor(4.0)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 12, small_policy(), TENSORS, {"sampler": {"position": 3}}, keep=2)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.folder.name == "update_000012"
    assert checkpoint.state == {"sampler": {"position": 3}, "update": 12}
    loaded = checkpoint.optimizer()
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    assert names(checkpoint.policy) == ["config.json", "model.safetensors", "statistics.json"]


def test_saving_copies_nothing_of_what_fills_the_memory(tmp_path: Path) -> None:
    large = {"exp_avg/linear.weight": torch.ones(1_000_000)}
    policy = small_policy()
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path, 1, policy, large, {}, keep=2, behaviour=large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A tensor has 4 MB; hashing takes a buffer of 0.3.
    assert peak < 1_000_000


def test_tensors_have_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(tmp_path, 1, small_policy(), TENSORS, {}, keep=2, behaviour=TENSORS)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.safetensors")}
    assert modes == {"optimizer.safetensors": 0o640, "behaviour.safetensors": 0o640}


def test_the_manifest_has_size_and_sha256_of_each_file(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, small_policy(), TENSORS, {}, keep=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert sorted(manifest["files"]) == [
        "optimizer.safetensors",
        "policy/config.json",
        "policy/model.safetensors",
        "policy/statistics.json",
        "state.json",
    ]
    data = (folder / "state.json").read_bytes()
    assert manifest["files"]["state.json"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for update in (1, 2, 9, 10, 11):
        save_checkpoint(tmp_path, update, small_policy(), {}, {}, keep=3)
    assert names(tmp_path) == ["update_000009", "update_000010", "update_000011"]


def test_order_is_by_number_beyond_six_digits(tmp_path: Path) -> None:
    for update in (999_999, 1_000_000):
        save_checkpoint(tmp_path, update, small_policy(), {}, {}, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update_999999", "update_1000000"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, small_policy(), {}, {"try": 1}, keep=3)
    save_checkpoint(tmp_path, 1, small_policy(), {}, {"try": 2}, keep=3)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state["try"] == 2
    assert names(tmp_path) == ["update_000001"]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "checkpoints") is None


def test_an_unfinished_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".update_000002.tmp").mkdir()
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, 2, small_policy(), {}, {}, keep=3)
    assert names(tmp_path) == ["update_000002"]


def test_an_error_in_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "a").write_text("new")
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        fail()
    assert names(tmp_path) == ["policy"]
    assert (target / "a").read_text() == "old"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target, moved_away = tmp_path / "policy", tmp_path / ".policy.replaced.tmp"
    moved_away.mkdir()
    (moved_away / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(target):
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["policy"]
