"""Whole runs in bfloat16: everything in them computes in it, and the update finds the rollout's log-probabilities."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_continual import ORDER, config, demonstrations
from torch import Tensor

from simplevla.config import RolloutConfig, SFTConfig, TrainConfig
from simplevla.policies.base import ObservationBatch
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.report.evidence import gather_evidence
from simplevla.training.continual import continual
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows
from small_tinyvla import for_fake_suite

Forwards = list[tuple[bool, bool]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "policy"
    for_fake_suite(("reach", "near", "far")).save(folder)
    return folder


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    """Of every forward pass of a policy: if it computed in bfloat16, and if it was for gradients."""
    seen: Forwards = []
    forward: Callable[[TinyVLA, ObservationBatch], Tensor] = TinyVLA.forward

    def noted(policy: TinyVLA, batch: ObservationBatch) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return forward(policy, batch)

    monkeypatch.setattr(TinyVLA, "forward", noted)
    return seen


def rl(base: Path, **changes: object) -> TrainConfig:
    """One update."""
    return replace(config(base).train, **{"updates": 1, "precision": "bfloat16", **changes})  # type: ignore[arg-type]


def test_rollouts_updates_evaluations_and_films_of_a_run(base: Path, tmp_path: Path, forwards: Forwards) -> None:
    train(rl(base), tmp_path / "run")
    assert set(forwards) == {(True, False), (True, True)}
    (row,) = [row for row in read_rows(tmp_path / "run") if "logprob_gap" in row]
    assert row["logprobs_recomputed"] == 0
    assert row["logprob_gap"] < 1e-4
    assert abs(row["approx_kl"]) < 1e-4
    learned = load_file(tmp_path / "run/policy/model.safetensors")
    assert {tensor.dtype for tensor in learned.values()} == {torch.float32}
    forwards.clear()
    gather_evidence(tmp_path / "run")
    assert set(forwards) == {(True, False)}


def test_a_rollout_in_another_precision_shows(base: Path, tmp_path: Path, forwards: Forwards) -> None:
    train(
        rl(base, precision="float32", rollout=RolloutConfig(workers=1, slots_per_worker=4, bfloat16=True)),
        tmp_path / "run",
    )
    assert {(False, True), (True, False)} <= set(forwards)
    (row,) = [row for row in read_rows(tmp_path / "run") if "logprob_gap" in row]
    assert row["logprob_gap"] > 3e-4


def test_imitation_rl_and_evaluations_of_continual_training(base: Path, tmp_path: Path, forwards: Forwards) -> None:
    task = ORDER[0]
    settings = replace(
        config(base, data=(demonstrations(tmp_path / "data", task),), warmup=SFTConfig(batches=1, batch_size=2)),
        train=rl(base, eval_every=0),
        tasks=(task,),
        eval_episodes_per_task=1,
    )
    continual(settings, tmp_path / "run")
    assert set(forwards) == {(True, False), (True, True)}
