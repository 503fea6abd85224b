"""Episodes of the fake policy, made without any environment, for tests of the learner; and its loader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from fake_policy import FakePolicy
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.policies.load import move_to_device
from simplevla.rollout.collect import rewards
from simplevla.training.learner import Learner
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Task

TASK = Task(name="reach", instruction="do reach", horizon=11, horizon_reason="test")


def small_policy() -> FakePolicy:
    """Two actions of two dimensions in a chunk: U = 4 units."""
    return FakePolicy(chunk_length=2, action_dim=2)


def sampled_episode(
    policy: FakePolicy, seed: int, success: bool, executed: Sequence[int], temperature: float = 1.6
) -> Episode:
    """One decision per entry of `executed`, on random observations, with the policy's own actions and logprobs."""
    random = np.random.default_rng(seed)
    count = len(executed)
    images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    state = random.normal(size=(count, 3)).astype(np.float32)
    with torch.no_grad():
        sample = policy.act(
            observations(images, state),
            Sampling(temperature=temperature),
            [np.random.default_rng((seed, t)) for t in range(count)],
        )
    return Episode(
        request=EpisodeRequest(task=TASK, initial_state=0, seed=(seed,)),
        status=EpisodeStatus.SUCCESS if success else EpisodeStatus.TIMEOUT,
        env_steps=sum(executed),
        images={"front": images},
        state=state,
        trace=sample.trace.numpy(),
        logprobs=sample.logprobs.numpy(),
        executed=np.array(executed),
        actions=sample.actions,
    )


def observations(images: np.ndarray, state: np.ndarray) -> ObservationBatch:
    return ObservationBatch(
        images={"front": torch.from_numpy(images)},
        state=torch.from_numpy(state),
        instructions=[TASK.instruction] * len(state),
    )


def sampled_group(policy: FakePolicy, number: int, rewards: Sequence[int], temperature: float = 1.6) -> list[Episode]:
    """Siblings that execute 2+1, 2+2+1, 2+2+2+1, 2+1, ... actions, so that lengths differ and last chunks are cut."""
    return [
        sampled_episode(policy, 100 * number + i, bool(reward), [2] * (1 + i % 3) + [1], temperature)
        for i, reward in enumerate(rewards)
    ]


def load_fake_policy(folder: Path | str, device: str = "cpu") -> FakePolicy:
    """What `FakePolicy.save` wrote, of the default size, fitting the fake suite."""
    policy = FakePolicy()
    policy.load_state_dict(safetensors.torch.load_file(Path(folder) / "model.safetensors"))
    policy.cameras, policy.state_dim = ("front",), 3
    move_to_device(policy, device)
    return policy


def update_by(learner: Learner, groups: Sequence[Sequence[Episode]], number: int) -> dict[str, float]:
    """Update `number` on these groups, as the main loop does it."""
    return learner.update(groups, group_relative_advantages(rewards(groups)), number)
