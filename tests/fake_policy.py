"""A token policy with one small linear layer: everything a real one promises, in microseconds."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling

BINS = 5


class FakePolicy(Policy):
    """`[position, goal, brightness] -> logits [H, A, 5]`; the bins stand for -1, -0.5, 0, 0.5, 1."""

    cameras = ("front",)
    state_dim = 3

    def __init__(self, chunk_length: int = 4, action_dim: int = 2, seed: int = 0, scale: float = 0.3) -> None:
        super().__init__()
        self.chunk_length, self.action_dim = chunk_length, action_dim
        self.units = chunk_length * action_dim
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(3, self.units * BINS)
        for parameter in self.linear.parameters():
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        self.batch_sizes: list[int] = []
        self.modes: list[bool] = []

    @property
    def unit_action_index(self) -> np.ndarray:
        return np.arange(self.units) // self.action_dim

    def log_softmax(self, batch: ObservationBatch, sampling: Sampling) -> Tensor:
        self.batch_sizes.append(len(batch))
        brightness = batch.images["front"].float().mean(dim=(1, 2, 3)) / 255
        features = torch.cat([batch.state[:, :2], brightness[:, None]], dim=1)
        logits = self.linear(features).view(-1, self.units, BINS)
        return (logits / sampling.temperature).log_softmax(-1)

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        self.modes.append(self.training)
        logprobs = self.log_softmax(batch, sampling)
        if sampling.greedy:
            tokens = logprobs.argmax(-1)
        else:
            uniform = torch.from_numpy(np.stack([g.random(self.units, np.float32) for g in generators]))
            tokens = (logprobs.exp().cumsum(-1) < uniform[..., None]).sum(-1).clamp(max=BINS - 1)
        actions = (tokens.float() / 2 - 1).view(-1, self.chunk_length, self.action_dim).numpy()
        return ActionSample(actions=actions, logprobs=logprobs.gather(-1, tokens[..., None])[..., 0], trace=tokens)

    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        logprobs = self.log_softmax(batch, sampling)
        return logprobs.gather(-1, trace[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(-1)

    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        tokens = ((actions.flatten(1) + 1) * 2).round().long().clamp(0, BINS - 1)
        logprobs, _ = self.score(batch, tokens, Sampling())
        weights = mask.repeat_interleave(self.action_dim, dim=1).float()
        return -(weights * logprobs).sum() / weights.sum()

    def save_alone(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")
        sizes = {"type": "fake", "chunk_length": self.chunk_length, "action_dim": self.action_dim}
        (folder / "config.json").write_text(json.dumps(sizes))
        (folder / "statistics.json").write_text("{}")


class SharingPolicy(FakePolicy):
    """The same one, which looks at equal observations once."""

    shares_observations = True

    def log_softmax(self, batch: ObservationBatch, sampling: Sampling) -> Tensor:
        return batch.per_decision(super().log_softmax(batch, sampling))
