"""What survives a power cut: contents are on the disk before their name is, and the name before anybody is told."""

import os
from pathlib import Path

import pytest

from simplevla.storage import atomic_folder, write_atomically
from simplevla.training.runlog import RunLog

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """("flush" or "rename", path) in the order in which they happen."""
    seen: Events = []

    def noted(name: str, kind: str) -> None:
        original = getattr(os, name)

        def call(what: int | Path, *others: Path) -> None:
            seen.append((kind, os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)))
            original(what, *others)

        monkeypatch.setattr(os, name, call)

    noted("fsync", "flush")
    noted("replace", "rename")
    noted("rename", "rename")
    return seen


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path: Path, events: Events) -> None:
    write_atomically(tmp_path / "row.json", b"{}")
    (_, temporary), *_ = events
    assert events == [("flush", temporary), ("rename", temporary), ("flush", str(tmp_path))]
    assert temporary != str(tmp_path / "row.json")


def test_all_in_a_folder_is_flushed_before_it_is_renamed(tmp_path: Path, events: Events) -> None:
    with atomic_folder(tmp_path / "policy") as temporary:
        (temporary / "adapters").mkdir()
        (temporary / "adapters" / "milk").write_text("weights")
        (temporary / "config.json").write_text("{}")
    renamed = events.index(("rename", str(temporary)))
    inside = ["", "adapters", "adapters/milk", "config.json"]
    assert sorted(events[:renamed]) == sorted(("flush", str(temporary / name)) for name in inside)
    assert events[renamed + 1 :] == [("flush", str(tmp_path))]


def test_a_row_of_the_history_is_flushed_when_it_is_written(tmp_path: Path, events: Events) -> None:
    with RunLog(tmp_path) as log:
        log.write({"update": 1})
        assert ("flush", str(tmp_path / "metrics.jsonl")) in events
