"""SmolVLA under the commands that any policy is used with: `plan`, `train` and `continual`."""

from pathlib import Path

import torch

import small_smolvla
import small_tinyvla
from simplevla.adapters.bank import bank_of
from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.adapters.load import load_policy
from simplevla.config import DenoisingConfig, OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.planning.footprint import rollout_footprint, update_footprint
from simplevla.planning.memory import sizes_of
from simplevla.planning.unfilled import saved
from simplevla.runs import train
from simplevla.suites.base import SuiteSpec
from simplevla.training.continual import continual
from simplevla.training.runlog import read_rows

SPEC = SuiteSpec(
    cameras=dict.fromkeys(small_tinyvla.CAMERAS, (32, 32)),
    state_names=("a", "b", "c"),
    action_names=("x", "y"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_hz=10.0,
)


def test_its_memory_is_planned_without_its_weights(tmp_path: Path) -> None:
    small_smolvla.make().save(tmp_path / "policy")
    policy = saved(tmp_path / "policy")
    plain, checkpointed = (update_footprint(policy, SPEC, "press it", 4, on) for on in (False, True))
    assert rollout_footprint(policy, SPEC, "press it", 4) < checkpointed < plain
    stored = sizes_of(policy, SPEC).stored_bytes
    noisy = saved(tmp_path / "policy")
    noisy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(flow="noise")))
    assert update_footprint(noisy, SPEC, "press it", 4, False) > plain
    policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(frozen_backbone=True)))
    # Instead of two pictures: keys and values in 4 layers, 2 heads of 8 numbers, of 8 tokens and 48 words.
    assert sizes_of(policy, SPEC).stored_bytes == stored - 2 * 32 * 32 * 3 + 4 * 4 * 2 * 2 * 8 * 56


def test_an_update_with_kept_reads_begins_at_ratio_1(tmp_path: Path) -> None:
    small_smolvla.make(chunk_length=4).save(tmp_path / "policy")
    config = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach",)),
        policy=str(tmp_path / "policy"),
        updates=1,
        minibatches=1,
        microbatch_decisions=3,
        sampling=SamplingConfig(groups=2, group_size=4, max_oversampling=8.0),
        denoising=DenoisingConfig(frozen_backbone=True),
        optimizer=OptimizerConfig(lr=1e-2),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=0,
    )
    train(config, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run") if row.get("optimizer_steps")]
    assert [row["logprob_gap"] < 1e-3 for row in rows] == [True]


def test_tasks_are_learned_one_after_another_each_with_its_adapter(tmp_path: Path) -> None:
    """With Flow-Noise, which has a parameter of its own beside the adapter's."""
    base = tmp_path / "base"
    small_smolvla.make(chunk_length=4).save(base)
    train = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach", "far")),
        policy=str(base),
        updates=1,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4),
        optimizer=OptimizerConfig(lr=1e-2),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        denoising=DenoisingConfig(flow="noise"),
        eval_every=0,
    )
    tasks = ContinualConfig(train=train, tasks=("reach", "far"), adapter=AdapterConfig(rank=2, alpha=2.0))
    continual(tasks, tmp_path / "run")
    policy = load_policy(next(iter(sorted(tmp_path.glob("run/2_far/**/policy")))))
    bank = bank_of(policy)
    assert bank.names == ["reach", "far"]
    trained = [
        name for name, values in bank.parameters("far").items() if "lora_B" in name and bool(values.abs().max() > 0)
    ]
    assert any(name.startswith("expert.") for name in trained)
    assert any(name.startswith("language.") for name in trained)
    with bank.detached():
        same = zip(policy.state_dict().values(), load_policy(base).state_dict().values(), strict=True)
        assert all(torch.equal(now, before) for now, before in same)
