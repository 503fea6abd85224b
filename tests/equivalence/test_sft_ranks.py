"""Several processes imitate one batch: the result is one process's."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from test_ranks import together

import small_tinyvla as small
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.config import OptimizerConfig, SFTConfig
from simplevla.distributed.learner import divide
from simplevla.policies.base import Policy
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitator import Imitator
from simplevla.training.ranks import full_tensor

CONFIG = SFTConfig(schedule="constant", optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1, warmup_steps=0))
CASES: dict[str, tuple[Literal["tokens", "diffusion"], SFTConfig]] = {
    "tokens": ("tokens", CONFIG),
    # Seven samples are four micro-batches: the last one has one sample.
    "diffusion": ("diffusion", replace(CONFIG, microbatch_size=2)),
    # Three: the second rank has one of them, and one that doesn't count.
    "adapter": ("tokens", replace(CONFIG, microbatch_size=3, gradient_checkpointing=True)),
    "bfloat16": ("tokens", replace(CONFIG, precision="bfloat16")),
}


def make(case: str) -> Policy:
    policy = small.make(head=CASES[case][0])
    if case == "adapter":
        bank = AdapterBank(policy)
        bank.add("sft", AdapterConfig(rank=4, alpha=4.0))
        bank.activate("sft", training=True)
    return policy


def batch(number: int) -> ChunkBatch:
    """Seven chunks of unequal ends: half of the samples aren't half of the valid actions."""
    ends = torch.tensor([3, 3, 3, 3, 1, 1, 2])
    return ChunkBatch(
        observations=small.observations([small.INSTRUCTIONS[i % 3] for i in range(7)], number),
        actions=torch.rand(7, 3, 2, generator=torch.Generator().manual_seed(number)) * 2 - 1,
        mask=torch.arange(3) < ends[:, None],
    )


def three_batches(case: Any, how: Any, folder: Path) -> None:
    """Write what is trained, and the optimizer, after three batches of each case, the last after a resume."""
    for name, (_, config) in CASES.items():
        policy = make(name)
        if how != "alone":
            divide(policy, how)
        trainer = Imitator(policy, config)
        stats = [trainer.update(batch(number), number) for number in range(2)]
        state = {key: value.clone() for key, value in trainer.optimizer_state().items()}
        trainer = Imitator(policy, config)
        trainer.load_optimizer_state(state, 2)
        stats.append(trainer.update(batch(2), 2))
        tensors = {key: full_tensor(p.detach()).contiguous().clone() for key, p in trainer.optimizer.parameters.items()}
        tensors |= {
            f"stat/{key}/{i}": torch.tensor(value) for i, row in enumerate(stats) for key, value in row.items()
        } | {f"state/{key}": value for key, value in trainer.optimizer_state().items()}
        if how == "alone" or dist.get_rank() == 0:
            save_file(tensors, folder / f"{name}_{how}.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what one process makes of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    three_batches(None, "alone", folder)
    return folder


@pytest.mark.parametrize("how", ["full", "copies"])
def test_two_processes_imitate_as_one_does(how: str, alone: Path) -> None:
    together(three_batches, "float32", how, alone)
    for case in CASES:
        expected, got = (load_file(alone / f"{case}_{name}.safetensors") for name in ("alone", how))
        assert expected.keys() == got.keys()
        start = {name: p.detach() for name, p in make(case).named_parameters()}
        trained = [name for name in expected if name in start]
        if case == "bfloat16":
            # Products of other rows are rounded to 8 bits: what is equal is where the steps lead.
            steps = [torch.cat([(end[name] - start[name]).flatten() for name in trained]) for end in (expected, got)]
            assert float((steps[0] - steps[1]).norm() / steps[0].norm()) < 0.1
            continue
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=f"{case}: {name}": f"{n}: {text}"
            )
        moved = [name for name in trained if float((expected[name] - start[name]).abs().max()) > 5e-5]
        assert len(moved) > 0.8 * len(trained)
        assert all(".lora_" in name for name in trained) == (case == "adapter")
