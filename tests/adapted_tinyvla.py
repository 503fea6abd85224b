"""Small policies with adapters that do something, for tests of the adapters."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import small_tinyvla as small
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Task

LORA = AdapterConfig(rank=4, alpha=8.0)
BOTTLENECK = AdapterConfig(kind="bottleneck", rank=4)
CONFIGS = {"lora": LORA, "bottleneck": BOTTLENECK}
OBSERVATIONS = small.observations(list(small.INSTRUCTIONS) * 2)


def with_diffusion() -> TinyVLA:
    """Its head has 1-D convolutions and FiLM layers."""
    return small.make(head="diffusion")


@torch.no_grad()
def disturb(bank: AdapterBank, name: str, seed: int, size: float = 0.05) -> None:
    """Give the adapter random parameters, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in bank.parameters(name).values():
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def make_bank(policy: TinyVLA | None = None, **configs: AdapterConfig) -> AdapterBank:
    """Adapters with random parameters, `first` for the first instruction and so on; LoRA and bottleneck by default."""
    bank = AdapterBank(policy or small.make())
    for number, (name, config) in enumerate((configs or CONFIGS).items()):
        bank.add(name, config, instructions=[small.INSTRUCTIONS[number]])
        disturb(bank, name, seed=number + 1)
    return bank


@torch.no_grad()
def outputs(policy: TinyVLA) -> Tensor:
    """Logits of a token head; log-probabilities and actions, sampled always alike, of a diffusion head."""
    if policy.config.head == "tokens":
        return policy(OBSERVATIONS)
    sample = policy.act(OBSERVATIONS, Sampling(), generators(len(OBSERVATIONS)))
    return torch.cat([sample.logprobs, torch.from_numpy(sample.actions).flatten(1)], dim=1)


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def base_tensors(bank: AdapterBank) -> dict[str, Tensor]:
    """Everything that a folder of the base holds, and what isn't saved but computed from the statistics."""
    with bank.detached():
        return snapshot(dict(bank.policy.named_parameters()) | dict(bank.policy.named_buffers()))


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(bank: AdapterBank, folder: Path, message: str, name: str | None = None) -> None:
    """Loading fails with `message` and leaves bank, policy and folder as they were."""
    names, tensors = bank.names, base_tensors(bank)
    modules = [module for module, _ in bank.policy.named_modules()]
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        bank.load(folder, name)
    assert bank.names == names
    assert same(base_tensors(bank), tensors)
    assert [module for module, _ in bank.policy.named_modules()] == modules
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, row)) for row in range(count)]


def sampled_group(
    policy: Policy,
    temperature: float = 1.6,
    observations: Callable[[list[str], int], ObservationBatch] = small.observations,
) -> list[Episode]:
    """Four siblings of two decisions each, two of them successful, sampled from `policy` on random observations.

    Args:
        observations: of instructions and a seed.
    """
    task = Task(name="lift", instruction=small.INSTRUCTIONS[0], horizon=9, horizon_reason="test")
    episodes = []
    for sibling in range(4):
        batch = observations([task.instruction] * 2, sibling)
        with torch.no_grad():
            sample = policy.act(batch, Sampling(temperature=temperature), generators(2, seed=sibling))
        episodes.append(
            Episode(
                request=EpisodeRequest(task=task, initial_state=0, seed=(sibling,)),
                status=EpisodeStatus.SUCCESS if sibling % 2 else EpisodeStatus.TIMEOUT,
                env_steps=5,
                images={camera: image.numpy() for camera, image in batch.images.items()},
                state=batch.state.numpy(),
                trace=sample.trace.numpy(),
                logprobs=sample.logprobs.numpy(),
                executed=np.array([3, 2]),
                actions=sample.actions,
            )
        )
    return episodes
