"""Warnings of a run that is being destroyed.

`recorded/run_health.json` has rows of real runs: healthy ones of the recipes, somewhat shortened, and ones that were
destroyed by 20 times the recipe's learning rate.
"""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.report.page import write_report
from simplevla.terminal import Console
from simplevla.training import loop
from simplevla.training.health import Health, HealthWarning
from simplevla.training.runlog import RunLog, read_rows


def row(update: int, **changes: Any) -> dict[str, Any]:
    """An update of a healthy run."""
    healthy = {"approx_kl": 0.002, "clipfrac_low": 0.005, "clipfrac_high": 0.004, "entropy": 0.9, "lr": 3e-3}
    return {"update": update, **healthy, **changes}


RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "run_health.json").read_text())
NAMES = [f"{run['recipe']}, {run['state']}" for run in RECORDED]


@pytest.mark.parametrize("run", RECORDED, ids=NAMES)
def test_real_runs_that_were_healthy_and_destroyed(run: dict[str, Any]) -> None:
    found = {warning.metric: (warning.update, count) for warning, count in Health(run["rows"]).found}
    if run["state"] == "healthy":
        assert found == {}
        return
    updates = run["rows"][-1]["update"]
    assert found["approx_kl"][0] == found["clip_fraction"][0] == 1
    # One update had a single mini-batch, which moves nothing before its only step.
    assert min(found["approx_kl"][1], found["clip_fraction"][1]) >= updates - 1
    first_evaluation = next(row["update"] for row in run["rows"][1:] if "eval_n" in row)
    assert found["eval_success"][0] == first_evaluation


def evaluated(update: int, solved: int, n: int, low: float, high: float) -> dict[str, Any]:
    return row(update, eval_success=solved / n, eval_n=n, eval_low=low, eval_high=high)


def check(rows: list[dict[str, Any]]) -> list[HealthWarning]:
    """The warnings of the last row."""
    return Health(rows[:-1]).judge(rows[-1])


def metrics(rows: list[dict[str, Any]]) -> list[str]:
    return [warning.metric for warning in check(rows)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"approx_kl": 0.02}, []),
        ({"approx_kl": 0.0201}, ["approx_kl"]),
        ({"approx_kl": -1e-9}, []),
        ({"approx_kl": math.inf}, ["approx_kl"]),
        ({"approx_kl": None}, ["approx_kl"]),
        ({"clipfrac_low": 0.03, "clipfrac_high": 0.03}, []),
        ({"clipfrac_low": 0.0601, "clipfrac_high": 0.0}, ["clip_fraction"]),
        ({"clipfrac_low": 0.0, "clipfrac_high": 0.0601}, ["clip_fraction"]),
        ({"clipfrac_low": 0.031, "clipfrac_high": 0.031}, ["clip_fraction"]),
        ({"clipfrac_high": math.nan}, ["clip_fraction"]),
        ({"entropy": 0.091}, []),
        ({"entropy": 0.089}, ["entropy"]),
        ({"entropy": 1.59}, []),  # 0.9 + ln 2 = 1.593
        ({"entropy": 1.60}, ["entropy"]),
        ({"entropy": None}, ["entropy"]),
    ],
)
def test_where_each_range_ends(changes: dict[str, Any], expected: list[str]) -> None:
    assert metrics([row(1), row(2), row(3, **changes)]) == expected
    # Of the last row alone, whatever was before.
    assert metrics([row(1), row(2, **changes), row(3)]) == []


def test_the_entropy_of_a_density_may_be_negative() -> None:
    assert metrics([row(1, entropy=-0.88), row(2, entropy=-0.88)]) == []
    assert metrics([row(1, entropy=-0.88), row(2, entropy=-0.18)]) == ["entropy"]
    assert metrics([row(1, entropy=0.1), row(2, entropy=0.0)]) == []
    assert metrics([row(1, entropy=0.1), row(2, entropy=-0.6)]) == ["entropy"]


def test_greedy_success_has_fallen_only_where_the_intervals_part() -> None:
    # Wilson intervals of 72, 60 and 45 of 120; before the first update, too.
    best, chance, fall = (72, 120, 0.5106, 0.6833), (60, 120, 0.4119, 0.5881), (45, 120, 0.2935, 0.4642)
    rows = [evaluated(0, *best), row(1), evaluated(2, *chance)]
    assert metrics(rows) == []
    rows = [*rows, row(3), evaluated(4, *fall)]
    assert metrics(rows) == ["eval_success"]
    assert "after update 0" in check(rows)[0].expected
    # Against the best one, not the first: 45 of 120 is no fall from 50, but from 72.
    middling = (50, 120, 0.3324, 0.5061)
    rows = [evaluated(0, *middling), evaluated(1, *fall), evaluated(2, *best), evaluated(3, *chance)]
    assert metrics(rows[:2]) == metrics(rows) == []
    rows = [*rows, evaluated(4, *fall)]
    assert "after update 2" in check(rows)[0].expected
    # The row after has no evaluation, so it has nothing to say of it.
    assert metrics([*rows, row(5)]) == []
    # Four episodes of which none is solved are no proof.
    assert metrics([evaluated(0, 2, 4, 0.15, 0.85), evaluated(1, 0, 4, 0.0, 0.49)]) == []


def test_updates_without_metrics_and_evaluations_without_episodes_are_not_judged() -> None:
    broken = {"eval_success": None, "eval_n": 0, "eval_low": 0.0, "eval_high": 1.0}
    assert metrics([{"update": 0, **broken}, {"update": 1, "train_success": 1.0, "lr": 0.0, **broken}]) == []


def test_the_words() -> None:
    (warning,) = check([row(1), row(7, approx_kl=0.1234)])
    assert str(warning) == (
        "update 7: approx_kl is 0.123; expected at most 0.02. One update moves the policy too far: start again with "
        "an optimizer.lr three to ten times lower."
    )
    (warning,) = check([row(1), row(7, approx_kl=None)])
    assert "approx_kl is not finite" in str(warning)


def test_history_has_each_metric_once_with_its_first_update_and_count() -> None:
    bad = {"approx_kl": 0.1}
    rows = [row(1), row(2, **bad), row(3, **bad, entropy=0.01), row(4), row(5, **bad)]
    assert [(warning.metric, warning.update, count) for warning, count in Health(rows).found] == [
        ("approx_kl", 2, 3),
        ("entropy", 3, 1),
    ]
    assert Health([row(1), row(2)]).found == []


def test_the_terminal_has_each_metric_once(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    rows = [row(1), row(2, approx_kl=0.1), row(3, approx_kl=0.2, entropy=0.01)]
    health = Health()
    with RunLog(tmp_path, console=console) as log:
        for one in rows:
            log.warn(health.judge(one))
            log.write(one)
    shown = [line for line in console.file.getvalue().splitlines() if "warning" in line]  # type: ignore[attr-defined]
    assert [line.split(" is ")[0] for line in shown] == ["warning: update 2: approx_kl", "warning: update 3: entropy"]


def test_the_report_has_a_box(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, approx_kl=0.1), row(3, approx_kl=0.2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = write_report(tmp_path).read_text()
    assert (
        "<b>approx_kl</b>, first after update 2, in 2 of 3 updates: 0.1; expected at most 0.02. "
        "One update moves the policy too far"
    ) in page
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[:2]))
    assert "healthy" not in write_report(tmp_path).read_text()


@pytest.fixture(scope="module")
def destroyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A run whose step size is far too large."""
    folder = tmp_path_factory.mktemp("destroyed")
    FakePolicy().save(folder / "start")
    config = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make"),
        policy=str(folder / "start"),
        updates=3,
        sampling=SamplingConfig(groups=4, group_size=4, dynamic=False),
        optimizer=OptimizerConfig(lr=2.0),
        minibatches=2,
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_policy", load_fake_policy)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        loop.train(config, folder / "run")
    return config, folder / "run"


def test_a_destroyed_run_says_so_in_its_rows(destroyed: tuple[TrainConfig, Path]) -> None:
    rows = read_rows(destroyed[1])
    assert {"approx_kl", "clip_fraction"} <= set(rows[0]["warnings"])
    for end, one in enumerate(rows, start=1):
        assert one["warnings"] == metrics(rows[:end])


def test_a_resumed_run_shows_what_the_killed_one_showed(
    destroyed: tuple[TrainConfig, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, run = destroyed
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "update_000003")
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    loop.train(config, tmp_path / "run", resume=True)
    expected = read_rows(run)
    assert [one["warnings"] for one in read_rows(tmp_path / "run")] == [one["warnings"] for one in expected]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert shown == [f"warning: {warning}" for warning, _ in Health(expected).found]


def test_a_healthy_run_has_no_warnings(
    destroyed: tuple[TrainConfig, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(destroyed[0], optimizer=OptimizerConfig(lr=0.01))
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    loop.train(config, tmp_path / "run")
    assert [one["warnings"] for one in read_rows(tmp_path / "run")] == [[], [], []]
    assert "warning" not in capsys.readouterr().out


def sampled(greedy: tuple[int, int], solved: tuple[int, int], **of_other_tasks: list[int]) -> list[str]:
    """Warnings of an update whose policy had been evaluated before."""
    evaluated = {"update": 0, "eval_by_task": {"lift": list(greedy), "push": [10, 10]}}
    return metrics([evaluated, row(1, success_by_task={"lift": list(solved), **of_other_tasks})])


def test_sampled_success_far_below_greedy_success() -> None:
    # The policy of docs/learning_rate: 80 % greedy, 1.6 % sampled.
    assert sampled((48, 60), (4, 256)) == ["sampled_success"]
    # Half of 0.8 is 0.4: 103 of 256 is 0.402, 102 is 0.398.
    assert sampled((48, 60), (103, 256)) == []
    assert sampled((48, 60), (102, 256)) == ["sampled_success"]
    # 0.25 below: 0.4 against 0.16 and 0.14, so many that the intervals part.
    assert sampled((400, 1000), (160, 1000)) == []
    assert sampled((400, 1000), (140, 1000)) == ["sampled_success"]
    # Wilson of 2 of 3 is 0.21 to 0.94, of 0 of 8 it is 0 to 0.32.
    assert sampled((2, 3), (0, 8)) == []
    # A task that wasn't sampled says nothing, and one that wasn't evaluated neither.
    assert sampled((0, 60), (0, 256)) == []
    assert sampled((48, 60), (200, 256), press=[0, 2560]) == []
    assert metrics([row(1, success_by_task={"lift": [0, 256]})]) == []


def test_sampled_success_is_judged_by_the_evaluation_of_the_same_policy() -> None:
    good, bad = {"eval_by_task": {"lift": [48, 60]}}, {"eval_by_task": {"lift": [0, 60]}}
    few = {"success_by_task": {"lift": [4, 256]}}
    assert metrics([row(1, **bad), row(2, **few, **good)]) == []
    assert metrics([row(1, **good), row(2, **few, **bad)]) == ["sampled_success"]
    assert metrics([row(1, **good), row(2), row(3, **few, **good)]) == ["sampled_success"]
    assert metrics([row(1, **good), row(2), row(3, **few)]) == []
    (warning,) = check([row(1, **good), row(2, **few)])
    assert str(warning) == (
        "update 2: sampled_success is 0.0156; expected at least 0.4, 0.5 of the greedy success on the same tasks, 80.0% [68.2%, 88.2%], "
        "48 of 60. Sampling spoils what the policy can do, and RL has little to reinforce: lower sampling.temperature of a token head, "
        "sampling.eta and sampling.sigma_min of a diffusion head, or sampling.alpha of a flow head."
    )


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("recipe", ["tabletop_nano", "tabletop_nano_diffusion", "metaworld_nano"])
def test_recorded_healthy_runs_sample_well_enough(recipe: str) -> None:
    """They have rates alone: as if each had very many episodes, so that the intervals never meet."""
    n, ratios = 100_000, []
    for seed in json.loads((RESULTS / f"{recipe}.json").read_text())["seeds"]:
        curves = seed["curves_of_minutes"]
        trained = dict(curves["train_success"])
        first = min(trained)
        for minute, greedy in curves["eval_success"]:
            rate = trained.get(minute, trained[first])
            ratios.append(rate / greedy)
            rows = [{"update": 0, "eval_by_task": {"all": [round(greedy * n), n]}}]
            assert metrics([*rows, row(1, success_by_task={"all": [round(rate * n), n]})]) == []
    assert min(ratios) >= 0.7


def test_missing_metrics_of_a_row_are_no_crash() -> None:
    assert metrics([{"update": 1, "approx_kl": 0.001}]) == ["clip_fraction"]


def test_a_run_of_any_length_keeps_few_rows() -> None:
    rows = [evaluated(number, 50 + number % 7, 120, 0.3 + number % 7 / 100, 0.6) for number in range(200)]
    health = Health(rows)
    assert [row["update"] for row in health.kept] == [0, 6, 199]
    assert metrics([*rows, row(200, entropy=0.05)]) == ["entropy"]
