import io
import json
from pathlib import Path

import pytest

from simplevla.config import TrainConfig
from simplevla.errors import UserError
from simplevla.terminal import Console
from simplevla.training import runlog
from simplevla.training.run_folder import load_config
from simplevla.training.runlog import RunLog, environment_facts


def read_rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write({"update": 1, "train_success": 0.5})
        kept = log.length
        log.write({"update": 2, "train_success": 0.6})
    assert [row["update"] for row in read_rows(tmp_path)] == [1, 2]
    with RunLog(tmp_path, keep_bytes=kept, first_update=2) as log:
        assert log.length == kept
        log.write({"update": 2, "train_success": 0.7})
    assert read_rows(tmp_path) == [{"update": 1, "train_success": 0.5}, {"update": 2, "train_success": 0.7}]


def test_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write({"update": 1})
        assert read_rows(tmp_path) == [{"update": 1}]


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write({"update": 1, "approx_kl": float("nan"), "ratio_max": float("inf"), "loss": -0.25})
    assert read_rows(tmp_path) == [{"update": 1, "approx_kl": None, "ratio_max": None, "loss": -0.25}]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_the_terminal_shows(tmp_path: Path, terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with RunLog(tmp_path, console=console) as log:
        log.stage("update 7 of 9: rolling out")
        log.write({"update": 7, "train_success": 0.625, "groups_mixed": 5, "groups_sampled": 8, "elapsed_s": 83.0})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "62.5%" in shown
    assert "1:23" in shown
    assert ("rolling out" in shown) is terminal
    if not terminal:
        assert shown == "update 7  train 62.5%  mixed 5  of groups 8  time 1:23\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_and_how_far_the_rollouts_are(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    groups = ["no groups yet"]
    with RunLog(tmp_path, first_update=3, updates=9, console=console) as log:
        log.write({"update": 2})
        now[0] = 110.0
        log.write({"update": 3})
        now[0] = 130.0
        log.write({"update": 4})
        log.stage("update 5 of 9: rolling out", _Said(groups))
        groups[0] = "12 of 64 groups"
        if log._live is not None:
            log._live.refresh()
        log.write({"update": 9})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "update 5 of 9: rolling out, no groups yet, 1:15 left" in shown
        assert "update 5 of 9: rolling out, 12 of 64 groups, 1:15 left" in shown
    else:
        # 10 s each, then 15 s each.
        assert shown.splitlines() == ["update 2", "update 3  1:00 left", "update 4  1:15 left", "update 9"]


class _Said:
    """Something whose text changes."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __str__(self) -> str:
        return self.words[0]


def test_facts_of_the_environment() -> None:
    facts = environment_facts(5, {"horizon": 60})
    assert (facts["seed"], facts["suite_protocol"]) == (5, {"horizon": 60})
    assert {"python", "torch", "numpy", "mujoco", "transformers"} <= facts["versions"].keys()
    assert facts["cpu_count"] >= 1
    assert not facts["commit"].endswith("+changes")


def test_an_unknown_key_in_the_run_s_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sampling": {"group_sise": 8}}')
    with pytest.raises(ValueError, match=r"unknown key 'group_sise' in SamplingConfig.*Did you mean 'group_size'"):
        load_config(TrainConfig, tmp_path)


def test_a_long_history_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "LONGEST_JSON", 30)
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"update": {number}}}\n' for number in range(1, 51)) + '{"upd')
    assert [row["update"] for row in runlog.read_rows(tmp_path)] == list(range(1, 51))
    with file.open("a") as stream:
        stream.write("a" * 40)
    with pytest.raises(UserError, match="line 51 is longer than 30 bytes; restore the file"):
        runlog.read_rows(tmp_path)
