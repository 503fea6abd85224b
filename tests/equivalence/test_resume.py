"""A run that was killed at any moment and resumed ends bit for bit as one that was never interrupted."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_policy import FakePolicy
from forked import FORKED
from sampled_episodes import load_fake_policy
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.training import loop
from simplevla.training.checkpoint import list_checkpoints
from simplevla.training.learner import Learner

TIMES = {"elapsed_s", "update_s", "collect_s", "eval_s", "policy_s", "wait_s", "rollout_wait_s"}
TIMES |= {"env_steps_per_s", "decisions_per_s"}


def killed(place: str, update: int, run: Path, config: TrainConfig) -> None:
    """A run that kills itself at `place` of `update`; called in a process of its own."""
    now = 0
    update_policy, step, save, save_checkpoint = Learner.update, Learner._step, FakePolicy.save, loop.save_checkpoint

    def kill_in_time() -> None:
        if now == update:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: Learner, groups: Any, advantages: Any, number: int) -> Any:
        nonlocal now
        now = number
        return update_policy(self, groups, advantages, number)

    def between_mini_batches(self: Learner, where: Any) -> Any:
        norm = step(self, where)
        kill_in_time()
        return norm

    def in_the_checkpoint(self: FakePolicy, folder: Path) -> None:
        save(self, folder)
        kill_in_time()

    def before_the_checkpoint(*arguments: Any) -> Any:
        kill_in_time()
        return save_checkpoint(*arguments)

    loop.load_policy = load_fake_policy  # type: ignore[assignment]
    Learner.update = counted  # type: ignore[method-assign]
    if place == "between mini-batches":
        Learner._step = between_mini_batches  # type: ignore[method-assign]
    elif place == "in the checkpoint":
        FakePolicy.save = in_the_checkpoint  # type: ignore[method-assign]
    else:
        loop.save_checkpoint = before_the_checkpoint
    loop.train(config, run)


def config_for(policy: Path, ahead: bool) -> TrainConfig:
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make"),
        policy=str(policy),
        updates=4,
        sampling=SamplingConfig(groups=4, group_size=4),
        optimizer=OptimizerConfig(lr=0.02, warmup_steps=6),
        minibatches=2,
        rollout=RolloutConfig(workers=2, slots_per_worker=3),
        rollouts_ahead=ahead,
        eval_every=2,
        eval_episodes_per_task=2,
    )


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, less what the clock decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def without_times(state: dict[str, Any]) -> dict[str, Any]:
    progress = {key: value for key, value in state["progress"].items() if key not in TIMES}
    return {**{key: value for key, value in state.items() if key != "metrics_bytes"}, "progress": progress}


@pytest.fixture(scope="module", params=[False, True], ids=["in turn", "ahead"])
def straight(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[TrainConfig, Path]:
    """The config, and the folder of the run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    FakePolicy().save(folder / "start")
    config = config_for(folder / "start", ahead=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_policy", load_fake_policy)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        outcome = loop.train(config, folder / "run")
    assert (outcome.reason, outcome.update) == ("finished", 4)
    return config, folder / "run"


def test_the_run_moves_the_policy_and_counts(straight: tuple[TrainConfig, Path]) -> None:
    config, run = straight
    start, end = load_fake_policy(config.policy), load_fake_policy(run / "policy")
    assert (start.linear.weight - end.linear.weight).abs().max().item() > 0.02
    metrics = rows(run)
    assert [row["update"] for row in metrics] == [0, 1, 2, 3, 4]
    assert ["eval_success" in row for row in metrics] == [True, False, True, False, True]
    # reach, far and near with two train states each
    assert [row["eval_n"] for row in metrics if "eval_success" in row] == [6, 6, 6]
    for row in metrics[1:]:
        assert row["groups_kept"] == row["groups_mixed"] == 4
        assert row["episodes"] == 4 * row["groups_sampled"]
        solved, n = np.array(list(row["success_by_task"].values())).sum(axis=0)
        assert (n, row["train_success"]) == (row["episodes"], solved / n)
        if row["staleness"] == 0:
            assert row["logprob_gap"] < 1e-5
    assert [row["staleness"] for row in metrics[1:]] == ([0, 1, 1, 1] if config.rollouts_ahead else [0, 0, 0, 0])
    assert metrics[-1]["episodes_total"] == sum(row["episodes"] for row in metrics[1:])
    assert metrics[-1]["env_steps_total"] == sum(row["env_steps"] for row in metrics[1:])
    assert [row["optimizer_steps"] for row in metrics[1:]] == [2, 2, 2, 2]
    # two steps per update, six of warm-up to 0.02
    assert [row["lr"] for row in metrics[1:]] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.02])
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"update_00000{i}" for i in (2, 3, 4)]
    assert sorted(path.name for path in (run / "eval").iterdir()) == [f"train_update_00000{i}.json" for i in (0, 2, 4)]
    facts = json.loads((run / "environment.json").read_text())
    assert facts["suite_protocol"] == {"suite": "fake", "horizon": 11}
    assert facts["seed"] == 0
    assert {"python", "torch", "numpy"} <= facts["versions"].keys()


@pytest.mark.parametrize(
    ("place", "update", "left"),
    [
        ("between mini-batches", 1, []),
        ("between mini-batches", 3, ["update_000001", "update_000002"]),
        ("in the checkpoint", 3, ["update_000001", "update_000002"]),
        ("before the checkpoint", 4, ["update_000001", "update_000002", "update_000003"]),
    ],
)
def test_kill_9_then_resume(
    straight: tuple[TrainConfig, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    update: int,
    left: list[str],
) -> None:
    config, uninterrupted = straight
    run = tmp_path / "run"
    process = FORKED.Process(target=killed, args=(place, update, run, config))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == left
    written = len(rows(run))
    assert written == (update + 1 if "checkpoint" in place else update)

    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    loop.train(config, run, resume=True)

    for name in ("policy/model.safetensors", "checkpoints/update_000004/optimizer.safetensors"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert rows(run) == rows(uninterrupted)
    ours, theirs = (
        json.loads((folder / "checkpoints/update_000004/state.json").read_text()) for folder in (run, uninterrupted)
    )
    assert without_times(ours) == without_times(theirs)
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert [entry["after_update"] for entry in json.loads((run / "environment.json").read_text())["resumed"]] == [
        int(left[-1][-1]) if left else 0
    ]


def test_a_finished_run_that_is_extended_ends_as_the_longer_one(
    straight: tuple[TrainConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, longer = straight
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    loop.train(replace(config, updates=2), run)
    assert loop.train(replace(config, keep_checkpoints=3), run, resume=True).update == 4
    for name in ("policy/model.safetensors", "checkpoints/update_000004/optimizer.safetensors"):
        assert (run / name).read_bytes() == (longer / name).read_bytes(), name
    assert rows(run) == rows(longer)
    assert json.loads((run / "config.json").read_text())["updates"] == 4
    with pytest.raises(ValueError, match=r"updates is 3, and .*run has done 4; expected as many or more"):
        loop.train(replace(config, updates=3), run, resume=True)
    with pytest.raises(ValueError, match=r"another config: seed is 1, the run has 0"):
        loop.train(replace(config, updates=6, seed=1), run, resume=True)


def test_another_seed_is_another_run(
    straight: tuple[TrainConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, uninterrupted = straight
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    loop.train(replace(config, seed=1, updates=1), tmp_path / "run")
    assert rows(tmp_path / "run")[1] != rows(uninterrupted)[1]
