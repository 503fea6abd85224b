"""Held-out initial states and demonstrations are touched by evaluation alone, and decide nothing.

Every environment of the fake suite, in whatever process, writes down what it is reset to.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import (
    DemosConfig,
    EvalConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.rollout.states import make_sampler
from simplevla.suites.gymnasium_view import SuiteEnv
from simplevla.suites.registry import make_suite
from simplevla.training import continual as continual_room
from simplevla.training import loop
from simplevla.training.chunks import ChunkBatches
from simplevla.training.continual import continual
from simplevla.training.imitation import sft
from small_tinyvla import for_fake_suite

TASKS = ("reach", "far", "near")
SUITE = SuiteConfig(name="fake_suite:make")
ROLLOUT = RolloutConfig(workers=1, slots_per_worker=4)
TRAIN_STATES = {(task, state) for task in TASKS for state in range(4)}
TEST_STATES = {(task, state) for task in TASKS for state in (4, 5)}

Resets = Callable[[], set[tuple[str, int]]]


@pytest.fixture
def resets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resets:
    """What environments were reset to since it was called last."""
    file = tmp_path / "resets"
    monkeypatch.setenv("FAKE_SUITE_LOG", str(file))

    def read() -> set[tuple[str, int]]:
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return {(task, int(state)) for task, state in (line.split() for line in lines)}

    return read


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "policy"
    for_fake_suite(TASKS).save(folder)
    return folder


def rl(base: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        suite=SUITE,
        policy=str(base),
        updates=2,
        minibatches=1,
        sampling=SamplingConfig(groups=6, group_size=4, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1),
        rollout=ROLLOUT,
        eval_every=1,
        eval_episodes_per_task=2,
    )
    return replace(config, **changes)


def test_an_evaluation_of_held_out_states_is_seen(base: Path, resets: Resets) -> None:
    evaluate(base, SUITE, ROLLOUT, EvalConfig())
    assert resets() == TEST_STATES


@pytest.mark.parametrize("states", ["uniform", "posterior"])
def test_samplers_give_train_states_alone(states: Literal["uniform", "posterior"]) -> None:
    for name, tasks in (("fake_suite:make", ()), ("tabletop", ())):
        suite = make_suite(SuiteConfig(name=name, tasks=tasks))
        train_states = {(task.name, state) for task in suite.tasks for state in suite.initial_states(task, "train")}
        sampler = make_sampler(suite, SamplingConfig(states=states), seed=0)
        sampler.begin(1, 8)
        drawn = {(task.name, state) for task, state in itertools.islice(sampler, len(train_states))}
        assert drawn == train_states


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": SamplingConfig(groups=6, group_size=4, temperature=1.0, state_order="posterior")},
        {"rollouts_ahead": True},
        {"stop_at": 1.0},
    ],
    ids=["uniform", "posterior", "ahead", "stop_at"],
)
def test_reinforcement_and_its_evaluations_stay_on_train_states(
    tmp_path: Path, resets: Resets, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    FakePolicy().save(tmp_path / "start")
    loop.train(rl(tmp_path / "start", **changes), tmp_path / "run")
    touched = resets()
    assert touched <= TRAIN_STATES
    assert len(touched) >= 6
    evaluations = [read_result(file) for file in sorted((tmp_path / "run" / "eval").iterdir())]
    assert [result.split for result in evaluations] == ["train"] * len(evaluations)
    assert len(evaluations) >= 2
    assert {(e.task, e.initial_state) for result in evaluations for e in result.episodes} <= TRAIN_STATES


def test_demonstrations_start_from_train_states(tmp_path: Path, resets: Resets) -> None:
    # So disturbed that the expert fails now and then, and goes on to its next state.
    config = DemosConfig(suite=SUITE, episodes=24, noise=2.0, noise_probability=1.0, workers=1)
    generate(config, tmp_path / "demos", progress=False)
    assert resets() == TRAIN_STATES
    (file,) = (tmp_path / "demos" / "meta" / "episodes").rglob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert {(row["task_name"], row["initial_state"]) for row in rows} <= TRAIN_STATES
    assert sum(row["attempts"] for row in rows) > len(rows)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        generate(DemosConfig(suite=SUITE, episodes=12, workers=1), folder, progress=False)
    return folder


def test_imitation_learns_from_no_held_out_demonstration_and_tries_train_states(
    base: Path, demos: Path, tmp_path: Path, resets: Resets, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[set[int]] = []
    """Demonstrations in each batch."""
    used: dict[str, set[int]] = {"gradient": set(), "validation": set()}
    make, loss = ChunkBatches.make, TinyVLA.imitation_loss

    def noted_make(self: ChunkBatches, starts: np.ndarray, *arguments: Any) -> Any:
        made.append(set(self.frames.episode_index[starts].tolist()))
        return make(self, starts, *arguments)

    def noted_loss(self: TinyVLA, *arguments: Any) -> Tensor:
        used["gradient" if torch.is_grad_enabled() else "validation"].update(made[-1])
        return loss(self, *arguments)

    monkeypatch.setattr(ChunkBatches, "make", noted_make)
    monkeypatch.setattr(TinyVLA, "imitation_loss", noted_loss)
    sft(
        SFTConfig(
            dataset=str(demos),
            policy=str(base),
            batches=2,
            batch_size=64,
            validate_every=2,
            validation_fraction=0.25,
            eval_episodes_per_task=2,
            suite=SUITE,
        ),
        tmp_path / "run",
    )
    assert (len(used["gradient"]), len(used["validation"])) == (9, 3)
    assert used["gradient"].isdisjoint(used["validation"])
    touched = resets()
    assert touched <= TRAIN_STATES
    assert {task for task, _ in touched} == set(TASKS)


def continual_config(base: Path, **changes: Any) -> ContinualConfig:
    config = ContinualConfig(
        train=rl(base, updates=1, sampling=SamplingConfig(groups=2, group_size=4, temperature=1.0), stop_at=1.0),
        tasks=("reach", "near"),
        adapter=AdapterConfig(rank=2, alpha=2.0),
        warmup_demos=2,
        demos=DemosConfig(workers=1),
        warmup=SFTConfig(batches=1, batch_size=4, eval_episodes_per_task=2),
    )
    return replace(config, **changes)


def test_continual_training_sees_held_out_states_in_its_matrix_alone(
    base: Path, tmp_path: Path, resets: Resets, monkeypatch: pytest.MonkeyPatch
) -> None:
    training: set[tuple[str, int]] = set()
    held_out: set[tuple[str, int]] = set()
    real = continual_room.evaluate_with

    def noted(*arguments: Any) -> EvaluationResult:
        training.update(resets())
        result = real(*arguments)
        held_out.update(resets())
        return result

    monkeypatch.setattr(continual_room, "evaluate_with", noted)
    # Folding looks at a few states, too.
    continual(continual_config(base, structure="merge_then_new"), tmp_path / "run")
    training.update(resets())
    assert held_out == TEST_STATES
    assert training <= TRAIN_STATES
    assert {task for task, _ in training} == set(TASKS)


def test_nothing_in_continual_training_follows_from_held_out_success(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = continual_room.evaluate_with
    files = []
    for solved in (True, False):

        def told(*arguments: Any, solved: bool = solved) -> EvaluationResult:
            result = real(*arguments)
            return replace(result, episodes=tuple(replace(episode, success=solved) for episode in result.episodes))

        monkeypatch.setattr(continual_room, "evaluate_with", told)
        run = tmp_path / str(solved)
        result = continual(continual_config(base, tasks=("reach",)), run)
        assert {rate for row in result["matrix"] for rate in row} == {float(solved)}
        files.append({path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("rl/**/*.safetensors"))})
    assert files[0] == files[1]
    assert any("checkpoints" in path.parts for path in files[0])


def test_the_view_for_other_trainers_starts_from_train_states_unless_told(resets: Resets) -> None:
    view = SuiteEnv(SUITE)
    for seed in range(40):
        view.reset(seed=seed)
    view.close()
    assert resets() == TRAIN_STATES
