"""The RL update: from groups of finished episodes to optimizer steps. D packed decisions, E episodes, U units."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simplevla.algorithm.loss import clipped_policy_loss, unit_weights
from simplevla.config import TrainConfig
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.training.learning_rate import with_learning_rate
from simplevla.training.optimizer import MasterAdamW, UpdateRefused
from simplevla.training.ranks import all_reduce_metrics, all_reduce_rows, rank_and_count, share_of
from simplevla.types import Episode, Observation

REUSED_LOGPROB_GAP = 0.005
"""Nats. Up to this mean gap the rollout's log-probabilities are used as they are; above (bfloat16 rollouts, another
inference stack) those of the kept groups are computed again."""
MAX_LOGPROB_GAP = 0.2
"""Nats. A larger mean gap is a defect and no rounding: RLinf measured 0.064 between two inference stacks
(RLinf/RLinf, pull request 1534), a wrong temperature makes more."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The decisions of some episodes, packed one after another without padding."""

    where: list[tuple[Episode, int]]
    """D pairs (episode, index of the decision in it)."""
    old_logprobs: Tensor
    """float32 [D, U] as sampled."""
    advantages: Tensor
    """float32 [D]: each decision has its episode's."""
    mask: Tensor
    """bool [D, U]: units of executed actions."""
    weights: Tensor
    """float32 [D, U] of the whole mini-batch's loss."""

    def __len__(self) -> int:
        return len(self.where)

    def split(self, size: int) -> Iterator["Decisions"]:
        """Micro-batches of at most `size` decisions; weights stay those of the mini-batch, so that gradients add up."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Decisions(
                where=self.where[part],
                old_logprobs=self.old_logprobs[part],
                advantages=self.advantages[part],
                mask=self.mask[part],
                weights=self.weights[part],
            )

    def observations(self) -> ObservationBatch:
        """Observations of the decisions; images stay uint8."""
        seen = [
            Observation(images={name: images[t] for name, images in episode.images.items()}, state=episode.state[t])
            for episode, t in self.where
        ]
        return ObservationBatch.stacked(seen, [episode.request.task.instruction for episode, _ in self.where])

    def trace(self) -> Tensor:
        """Sampled traces of the decisions, [D, ...]."""
        return torch.from_numpy(np.stack([episode.trace[t] for episode, t in self.where]))


def pack(
    episodes: Sequence[Episode], advantages: Sequence[float] | Tensor, unit_action_index: np.ndarray, aggregation: str
) -> Decisions:
    """One mini-batch: all decisions of `episodes`, masked env-step exactly and weighted for the loss.

    Args:
        advantages: one per episode.
        unit_action_index: int64 [U], the action in the chunk that each unit belongs to.
        aggregation: as in `unit_weights`.
    """
    lengths = torch.tensor([len(episode.executed) for episode in episodes])
    episode_D = torch.repeat_interleave(torch.arange(len(episodes)), lengths)
    executed_D = torch.from_numpy(np.concatenate([episode.executed for episode in episodes]))
    assert bool((lengths > 0).all()), "an episode without a decision"
    assert bool((executed_D > 0).all()), "a decision without an executed action"
    mask_DU = torch.from_numpy(unit_action_index)[None, :] < executed_D[:, None]
    return Decisions(
        where=[(episode, t) for episode in episodes for t in range(len(episode.executed))],
        old_logprobs=torch.from_numpy(np.concatenate([episode.logprobs for episode in episodes])),
        advantages=torch.as_tensor(advantages, dtype=torch.float32)[episode_D],
        mask=mask_DU,
        weights=unit_weights(mask_DU, episode_D, len(episodes), aggregation),
    )


class Trainer(Protocol):
    """Trainer of a policy: the learner below, or several that share the work."""

    optimizer_steps: int

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]: ...

    def optimizer_state(self) -> dict[str, Tensor]: ...

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None: ...


class Learner:
    """Holds the optimizer of a policy and applies one update at a time.

    The policy stays in evaluation mode (no dropout), as in the rollout, and `old_logprobs` are the rollout's own,
    unless the two disagree.
    """

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self.policy = policy
        config = replace(config, optimizer=with_learning_rate(config.optimizer, policy, "rl"))
        self.config = config
        policy.prepare_for_rl(config)
        self.device = next(policy.parameters()).device
        self.optimizer_steps = 0
        self.optimizer = MasterAdamW.of_policy(policy, config.optimizer, fused=self.device.type == "cuda")
        self.trainable = self.optimizer.parameters

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
        """One pass over `groups` in `config.minibatches` optimizer steps; returns the metrics of docs/metrics.md.

        Groups stay whole and are shuffled by (seed, update) alone. A mini-batch whose advantages are all zero is
        skipped, since AdamW's weight decay and momentum would move the parameters without any signal. Ratio and
        gradient metrics are means over the mini-batches that were stepped, and are missing if none was.

        Args:
            advantages: float32 [G, N], one per sibling of each group.

        Raises:
            UpdateRefused: non-finite loss or gradient, or the rollout's log-probabilities aren't the update's.
        """
        assert groups, "an update needs at least one group"
        started = time.perf_counter()
        self.policy.eval()
        if self.config.gradient_checkpointing:
            self.policy.checkpoint_activations()
        order = np.random.default_rng((self.config.seed, update)).permutation(len(groups))
        parts = np.array_split(order, min(self.config.minibatches, len(groups)))
        stepped: list[dict[str, float]] = []
        decisions = units = 0
        recomputed = False

        def minibatch(part: np.ndarray) -> Decisions:
            return pack(
                [episode for g in part for episode in groups[g]],
                advantages[part].flatten(),
                self.policy.unit_action_index,
                self.config.loss.aggregation,
            )

        for number, part in enumerate(parts, start=1):
            batch = minibatch(part)
            decisions += len(batch)
            units += int(batch.mask.sum())
            if not batch.advantages.any():
                continue
            place = f"update {update}, mini-batch {number} of {len(parts)}"
            stats = self.accumulate_gradients(batch, place)
            if not stepped:
                _require_small_gap(stats, place)
                # Those of a policy that rolled out ahead belong to it and stay as they are.
                recomputed = stats["abs_log_ratio"] > REUSED_LOGPROB_GAP and not self.config.rollouts_ahead
                if recomputed:
                    gap = {name: stats[name] for name in ("abs_log_ratio", "ratio_outside")}
                    self._score_again([episode for group in groups for episode in group])
                    stats = self.accumulate_gradients(minibatch(part), place) | gap
            stats["grad_norm"] = self._step(place)
            stepped.append(stats)
        episodes = [episode for group in groups for episode in group]
        return {
            **_merge(stepped),
            "logprobs_recomputed": float(recomputed),
            "skipped_minibatches": float(len(parts) - len(stepped)),
            "decisions": float(decisions),
            "units": float(units),
            "episode_env_steps": float(np.mean([episode.env_steps for episode in episodes])),
            "optimizer_steps": float(len(stepped)),
            "lr": self.optimizer.lr,
            "update_s": time.perf_counter() - started,
        }

    def accumulate_gradients(self, batch: Decisions, place: str) -> dict[str, float]:
        """Leaves the gradient of the mini-batch's loss in the optimizer; independent of the micro-batch size.

        Args:
            place: names update and mini-batch in an error.
        """
        self.optimizer.zero_grad()
        sampling = Sampling.of(self.config.sampling)
        clip = self.config.loss
        ranks = rank_and_count()[1]
        scale_U, discount_U = (
            torch.from_numpy(values).to(self.device)
            for values in (self.policy.unit_clip_scale, self.policy.unit_discount)
        )
        sums: dict[str, float] = {}
        lowest, highest = math.inf, 0.0
        parts = list(batch.split(self.config.microbatch_decisions))
        for number, counts in share_of(len(parts)):
            part = parts[number]
            logprobs_DU, entropy_DU = self.policy.score(
                self._observations(part), part.trace().to(self.device), sampling
            )
            old_DU, weights_DU = part.old_logprobs.to(self.device), (part.weights * counts).to(self.device)
            advantages_D = part.advantages.to(self.device)
            result = clipped_policy_loss(
                logprobs_DU,
                old_DU,
                advantages_D,
                weights_DU,
                clip.clip_low * scale_U,
                clip.clip_high * scale_U,
                discount_U,
            )
            stats = {
                **result.stats,
                "loss": float(result.loss.detach()),
                "entropy": float((weights_DU * entropy_DU.detach()).sum()),
            }
            # Several ranks average their gradients.
            torch.autograd.backward(result.loss * ranks)
            self.optimizer.collect_gradients()
            ratio = (logprobs_DU.detach() - old_DU)[part.mask.to(self.device)].exp()
            lowest, highest = min(lowest, float(ratio.min())), max(highest, float(ratio.max()))
            for name, value in stats.items():
                sums[name] = sums.get(name, 0.0) + value
        totals = {
            **all_reduce_metrics(sums, "sum"),
            **all_reduce_metrics({"ratio_min": lowest}, "min"),
            **all_reduce_metrics({"ratio_max": highest}, "max"),
        }
        self.optimizer.require_finite("loss", totals["loss"], place)
        return totals

    def _observations(self, part: Decisions) -> ObservationBatch:
        """Observations on the policy's device; equal ones (the first of siblings) once if the policy allows it."""
        observations = part.observations()
        if self.policy.shares_observations:
            observations = observations.distinct()
        return observations.to(self.device)

    def _score_again(self, episodes: Sequence[Episode]) -> None:
        """Replaces the episodes' log-probabilities by those that this policy computes now, each rank its share."""
        packed = pack(episodes, [0.0] * len(episodes), self.policy.unit_action_index, "unit")
        sampling = Sampling.of(self.config.sampling)
        parts = list(packed.split(self.config.microbatch_decisions))
        rows = [torch.zeros_like(part.old_logprobs) for part in parts]
        for number, counts in share_of(len(parts)):
            part = parts[number]
            with torch.no_grad():
                scores, _ = self.policy.score(self._observations(part), part.trace().to(self.device), sampling)
            if counts:
                rows[number] = scores.float().cpu()
        ends = np.cumsum([len(episode.executed) for episode in episodes])
        logprobs = all_reduce_rows(torch.cat(rows)).numpy()
        for episode, own in zip(episodes, np.split(logprobs, ends[:-1]), strict=True):
            episode.logprobs = own

    def _step(self, place: str) -> float:
        norm = self.optimizer.take_step(self.optimizer_steps, place)
        self.optimizer_steps += 1
        return norm

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `MasterAdamW.state`."""
        return self.optimizer.state()

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """Goes on with the optimizer that `optimizer_state` described; see `MasterAdamW.load_state`."""
        self.optimizer.load_state(tensors)
        self.optimizer_steps = optimizer_steps


def _require_small_gap(stats: dict[str, float], place: str) -> None:
    gap = stats["abs_log_ratio"]
    if gap > MAX_LOGPROB_GAP:
        raise UpdateRefused(
            f"before the first optimizer step ({place}) the policy's log-probabilities differ from the rollout's by "
            f"{gap:.3f} nats on average, {stats['ratio_outside']:.1%} of the units outside the clip band; expected at "
            f"most {MAX_LOGPROB_GAP}. Rollout and update disagree: look for another temperature, dtype, dropout or "
            "preprocessing between the policy's act() and score(); with rollouts_ahead the policy may have moved as far: "
            "lower optimizer.lr, or switch it off."
        )


def _merge(stepped: list[dict[str, float]]) -> dict[str, float]:
    """Means over mini-batches; extremes of the extremes; the gap is the first mini-batch's, before any step."""
    if not stepped:
        return {}
    merged = {name: float(np.mean([stats[name] for stats in stepped])) for name in stepped[0]}
    merged["ratio_min"] = min(stats["ratio_min"] for stats in stepped)
    merged["ratio_max"] = max(stats["ratio_max"] for stats in stepped)
    merged["logprob_gap"] = stepped[0]["abs_log_ratio"]
    merged["logprob_gap_outside"] = stepped[0]["ratio_outside"]
    del merged["abs_log_ratio"]
    return merged
