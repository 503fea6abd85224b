"""Damaged checkpoints, a full disk, a folder that may not be written."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sampled_episodes import small_policy
from simplevla.training.checkpoint import load_latest, save_checkpoint


def save(folder: Path, update: int) -> Path:
    return save_checkpoint(folder, update, small_policy(), {"step/w": torch.tensor(1.0)}, {"marker": update}, keep=3)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["policy/model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    if name == "manifest.json" and damage is truncate:
        (newest / name).write_text('{"format": 1, "fil')
    else:
        damage(newest / name)
    with pytest.warns(UserWarning, match=f"update_000002 is damaged: {name}.* Using update_000001 instead"):
        checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state["marker"] == 1


def test_an_additional_file_is_damage(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "policy" / "stray").write_text("x")
    with pytest.raises(ValueError, match=r"policy/stray is 1 bytes .* expected absent"):
        load_latest(tmp_path)


def test_the_error_says_what_was_got_and_expected(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    size = (folder / "state.json").stat().st_size
    truncate(folder / "state.json")
    with pytest.raises(ValueError, match=f"state.json is {size - 1} bytes .* expected {size} bytes"):
        load_latest(tmp_path)


def test_all_damaged(tmp_path: Path) -> None:
    for update in (1, 2):
        truncate(save(tmp_path, update) / "state.json")
    with pytest.raises(
        ValueError, match=r"no intact checkpoint is left: .*update_000002 .*update_000001 .*Start the run again"
    ):
        load_latest(tmp_path)


def test_another_format_is_named(tmp_path: Path) -> None:
    manifest = save(tmp_path, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        load_latest(tmp_path)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_safetensors(*_: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("os.fsync", full_disk),
        ("os.rename", full_disk),
        ("safetensors.torch.save_file", full_disk_in_safetensors),
        ("pathlib.Path.write_text", full_disk),
        ("fake_policy.save_file", full_disk_in_safetensors),
    ],
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(place, error)
        with pytest.raises(OSError, match=r"update_000002 could not be written: .*No space left on device.*Free space"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000001"]
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state["marker"] == 1


def test_full_disk_while_replacing_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    rename = os.rename

    def only_moving_away(source: Path, target: Path) -> None:
        if Path(target).name == "update_000001" and "replaced" not in Path(source).name:
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "rename", only_moving_away)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000001"]
    assert load_latest(tmp_path) is not None


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="update_000001 could not be written: Permission denied"):
        save(tmp_path / "checkpoints", 1)
