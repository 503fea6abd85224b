"""Suites that run to the end and make numbers that look right: each is refused, or said."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_suite
from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla import cli
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.workers import SuiteError, check_result
from simplevla.suites.registry import make_suite
from simplevla.training import loop
from simplevla.types import ChunkResult, Observation

WORKERS = ["--rollout.workers", "1", "--rollout.slots-per-worker", "4"]


def make_unsound(config: SuiteConfig) -> fake_suite.FakeSuite:
    """As `CHANGE` has changed it."""
    suite = fake_suite.FakeSuite(("reach", "far"))
    CHANGE(suite)
    return suite


def sound(suite: fake_suite.FakeSuite) -> None:
    pass


CHANGE: Callable[[Any], None] = sound


def states(**of_split: Any) -> Callable[[Any], None]:
    def change(suite: Any) -> None:
        suite.initial_states = lambda task, split: of_split[split]

    return change


def protocol(suite: Any) -> None:
    suite.__class__ = type("S", (fake_suite.FakeSuite,), {"protocol": {"physics": np.int64(3)}})


def twice(suite: Any) -> None:
    suite.tasks = (*suite.tasks, suite.tasks[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, "task 'reach' is there 2 times"),
        (lambda suite: setattr(suite, "tasks", ()), "it has no tasks"),
        (
            states(train=[0, 1, 2], test=[2, 3]),
            "1 initial states of task 'reach' are train and test states, 2 for example",
        ),
        (states(train=[0, 1], test=[2, 3, 2]), "test initial states of task 'reach' are 3, of them 2 different"),
        (
            states(train=[0, 1], test=np.array([2, 3])),
            "test initial states of task 'reach' are of type int64; expected int",
        ),
        (protocol, r"protocol\['physics'\] is of type int64; expected text, int or float"),
    ],
)
def test_a_suite_that_would_count_wrongly_is_refused(
    change: Callable[[Any], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.CHANGE", change)
    with pytest.raises(ValueError, match=message):
        make_suite(SuiteConfig(name=f"{__name__}:make_unsound"))
    monkeypatch.setattr(f"{__name__}.CHANGE", sound)
    assert make_suite(SuiteConfig(name=f"{__name__}:make_unsound")).name == "fake"


def test_a_task_named_twice_is_not_evaluated_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FakePolicy().save(tmp_path)
    flags = ["--policy", str(tmp_path), "--suite.name", "fake_suite:make", "--suite.tasks", "reach", "reach"]
    assert cli.main(["eval", *flags]) == 2
    assert "task 'reach' is there 2 times" in capsys.readouterr().err


def test_a_spec_that_is_another_one_in_the_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory is laid out by it: one camera's rows would be read as the other's."""
    monkeypatch.setenv("UNSOUND_PARENT", str(os.getpid()))
    with pytest.raises(
        SuiteError, match=r"the spec of suite 'fake' is .* in this process and .* in the one that asked"
    ):
        RolloutEngine(
            SuiteConfig(name="unsound_suites:make_elsewhere"), RolloutConfig(workers=1, slots_per_worker=1), 4
        )


def train(folder: Path, suite: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The first update's row."""
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    FakePolicy().save(folder / "policy")
    flags = ["--policy", str(folder / "policy"), "--run", str(folder / "run"), *WORKERS, "--suite.name", suite]
    flags += [
        "--suite.tasks",
        "reach",
        "--updates",
        "1",
        "--minibatches",
        "1",
        "--eval-every",
        "0",
        "--optimizer.lr",
        "0.01",
    ]
    flags += ["--sampling.groups", "2", "--sampling.group-size", "4", "--sampling.no-dynamic"]
    assert cli.main(["train", *flags]) == 0
    row: dict[str, Any] = json.loads((folder / "run/metrics.jsonl").read_text())
    return row


def test_siblings_that_begin_in_different_states_are_counted_and_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = train(tmp_path, "unsound_suites:make_drifting", monkeypatch)
    # Resets add 0, 2, 4, 6, 8 cm, again and again: each group of 4 has one goal that its first episode had.
    assert row["unlike_starts"] == 6
    assert row["warnings"] == ["unlike_starts"]
    assert (
        "update 1: unlike_starts is 6; expected 0 episodes. Siblings that begin in different states"
        in capsys.readouterr().out
    )
    (said,) = [record.getMessage() for record in caplog.records if "doesn't always begin" in record.getMessage()]
    assert "its first observations differ in state" in said


def test_siblings_that_begin_alike_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = train(tmp_path, "fake_suite:make", monkeypatch)
    assert (row["unlike_starts"], row["warnings"]) == (0, [])


def test_a_truth_value_is_no_count_of_actions() -> None:
    seen = Observation(images={}, state=np.zeros(1, np.float32))
    with pytest.raises(SuiteError, match="executed is True of 4 actions; expected an int from 1 to 4"):
        check_result(ChunkResult(observation=seen, executed=True, success=True), 4)
    check_result(ChunkResult(observation=seen, executed=np.int64(1), success=np.bool_(True)), 4)  # type: ignore[arg-type]
