"""Nothing in an RL run draws from torch's global generator: a run's bits don't depend on its state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.config import Head, OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.training.learner import Learner
from simplevla.training.loop import train
from small_tinyvla import CAMERAS, plain_statistics


def start(folder: Path, head: Head, dropout: float | None) -> TrainConfig:
    policy = TinyVLA.create(
        "nano",
        cameras=CAMERAS,
        state_dim=3,
        action_dim=2,
        chunk_length=4,
        instructions=["do reach"],
        statistics=plain_statistics(3, 2),
        head=head,
    )
    if dropout is not None:
        bank = AdapterBank(policy)
        bank.add("reach", AdapterConfig(rank=2, alpha=2.0, dropout=dropout), instructions=["do reach"])
        bank.activate("reach", training=True)
    policy.save(folder)
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach",)),
        policy=str(folder),
        updates=2,
        minibatches=2,
        sampling=SamplingConfig(groups=4, group_size=4, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-3),
        rollout=RolloutConfig(workers=1, slots_per_worker=8),
        eval_every=2,
        eval_episodes_per_task=1,
        gradient_checkpointing=head == "tokens",
    )


def bits(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("head", "dropout"),
    [("tokens", None), ("tokens", 0.5), ("diffusion", None), ("flow", None)],
    ids=["tokens", "adapter", "diffusion", "flow"],
)
def test_a_run_s_bits_do_not_depend_on_torch_s_global_generator(
    head: Head, dropout: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = start(tmp_path / "start", head, dropout)
    trained = list((tmp_path / "start").rglob("*.safetensors" if dropout is None else "adapter*.safetensors"))
    assert trained
    update, roll_out = Learner.update, RolloutEngine.run
    seed, states = 0, []

    def update_with_a_seed(self: Learner, *arguments: Any) -> dict[str, float]:
        torch.manual_seed(seed)
        metrics = update(self, *arguments)
        states.append(torch.get_rng_state())
        return metrics

    def roll_out_with_a_seed(self: RolloutEngine, *arguments: Any, **named: Any) -> None:
        torch.manual_seed(seed)
        roll_out(self, *arguments, **named)
        states.append(torch.get_rng_state())

    monkeypatch.setattr(Learner, "update", update_with_a_seed)
    monkeypatch.setattr(RolloutEngine, "run", roll_out_with_a_seed)
    files = []
    for seed in (1, 2):
        states.clear()
        run = tmp_path / f"run_{seed}"
        train(config, run)
        # Two evaluations and two updates with their rollouts, none of which drew anything.
        fresh = torch.Generator().manual_seed(seed).get_state()
        assert [torch.equal(state, fresh) for state in states] == [True] * 6
        files.append({path.relative_to(run): bits(path) for path in sorted(run.rglob("*.safetensors"))})
    assert files[0] == files[1]
    assert all(bits(file) != files[0][Path("policy") / file.relative_to(tmp_path / "start")] for file in trained)
