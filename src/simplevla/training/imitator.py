"""The SFT update: from a batch of demonstrated chunks to an optimizer step."""

import contextlib
import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from simplevla.adapters.bank import bank_of
from simplevla.config import SFTConfig
from simplevla.policies.base import Policy
from simplevla.training.chunks import ChunkBatch
from simplevla.training.optimizer import MasterAdamW
from simplevla.training.ranks import all_reduce_metrics, rank_and_count, share_of


class ImitationTrainer(Protocol):
    """Trainer of a policy by imitation: the imitator below, or several that share the work."""

    def update(self, batch: ChunkBatch, number: int) -> dict[str, float]: ...

    def sync(self) -> None:
        """Brings the policy that the trainer was made with up to date."""

    def optimizer_state(self) -> dict[str, Tensor]: ...

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None: ...


class Imitator:
    """Holds the optimizer of a policy and imitates one batch at a time, on the policy's device.

    Raises:
        UserError: nothing can be trained, or the policy or its device can't do what the config asks for.
    """

    def __init__(self, policy: Policy, config: SFTConfig) -> None:
        self.policy, self.config = policy, config
        policy.compute_in(config.precision)
        if config.gradient_checkpointing:
            policy.checkpoint_activations()
            policy.eval()
        self.optimizer = MasterAdamW.of_policy(policy, config.optimizer, fused=True)

    def update(self, batch: ChunkBatch, number: int) -> dict[str, float]:
        """The optimizer step of batch `number` (from 0): its loss, gradient norm before clipping, and learning rate.

        Neither the size of micro-batches nor the number of ranks changes more than the last bits, unless an adapter has
        dropout: what is dropped is drawn for each micro-batch.

        Raises:
            UpdateRefused: loss or gradient isn't finite.
        """
        config, place, ranks = self.config, f"batch {number + 1}", rank_and_count()[1]
        torch.manual_seed((1_000_003 * config.seed + number) % 2**63)
        if config.gradient_checkpointing:
            self.policy.checkpoint_activations()
        loss, bank = 0.0, self.policy.adapter_bank
        with bank_of(self.policy).dropping_out() if bank is not None else contextlib.nullcontext():
            for part, share in weighted_losses(self.policy, config, batch):
                # Several ranks average their gradients.
                torch.autograd.backward(part * (share * ranks))
                self.optimizer.collect_gradients()
                # Last, since a GPU has to be waited for here.
                loss += share * float(part.detach())
        if config.gradient_checkpointing:
            self.policy.eval()
        loss = all_reduce_metrics({"loss": loss}, "sum")["loss"]
        self.optimizer.require_finite("loss", loss, place)
        norm = self.optimizer.take_step(number, place, schedule(config, number))
        return {"loss": loss, "grad_norm": norm, "lr": self.optimizer.lr}

    def sync(self) -> None:
        """Nothing to do: the policy itself is trained."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `MasterAdamW.state`."""
        return self.optimizer.state()

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """Goes on with the optimizer that `optimizer_state` described; batches have their numbers, steps need none."""
        self.optimizer.load_state(tensors)


def schedule(config: SFTConfig, number: int) -> float:
    """Factor of the learning rate of batch `number`, from 0: 1, or half a cosine down to 0."""
    return 1.0 if config.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * number / config.batches))


def weighted_losses(policy: Policy, config: SFTConfig, batch: ChunkBatch) -> Iterator[tuple[Tensor, float]]:
    """Losses of this rank's micro-batches, each with its share of the batch's valid actions.

    Their products add up, over all ranks, to the loss of the batch.
    """
    samples, valid = len(batch.actions), int(batch.mask.sum())
    size = min(config.microbatch_size or samples, math.ceil(samples / rank_and_count()[1]))
    parts = [slice(start, start + size) for start in range(0, samples, size)]
    noise = policy.imitation_noise(samples)
    for number, counts in share_of(len(parts)):
        rows = parts[number]
        part = batch.part(rows)
        own = {name: values[rows] for name, values in noise.items()}
        loss = policy.imitation_loss(part.observations, part.actions, part.mask, **own)
        yield loss, counts * int(part.mask.sum()) / valid
