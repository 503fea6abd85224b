"""TorchRL's collector over the same environments and with the same policy, through our Gymnasium view."""

import time

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, GymWrapper, MultiAction, ParallelEnv, TransformedEnv

from simplevla.config import SuiteConfig
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.suites.gymnasium_view import SuiteEnv
from simplevla.suites.registry import make_suite


class PolicyModule(TensorDictModuleBase):
    """Our policy as TorchRL calls it."""

    def __init__(self, policy: Policy, instructions: list[str]) -> None:
        super().__init__()
        self.policy, self.instructions = policy, instructions
        self.in_keys = ["observation", "task", *policy.cameras]
        self.out_keys = ["action", "trace", "logprobs"]
        self.random = np.random.default_rng(0)

    def forward(self, seen: TensorDictBase) -> TensorDictBase:
        tasks = seen["task"].argmax(-1) if seen["task"].ndim > 1 else seen["task"]
        batch = ObservationBatch(
            images={camera: seen[camera] for camera in self.policy.cameras},
            state=seen["observation"],  # TorchRL's name for Gymnasium's `state`
            instructions=[self.instructions[task] for task in tasks.tolist()],
        )
        sample = self.policy.act(batch, Sampling(temperature=1.0), [self.random] * len(batch))
        seen["action"] = torch.from_numpy(sample.actions)
        seen["trace"], seen["logprobs"] = sample.trace, sample.logprobs
        return seen


def make_env(suite: SuiteConfig, chunk_length: int | None) -> GymWrapper:
    return GymWrapper(SuiteEnv(suite, chunk_length=chunk_length))


class TorchRLRollout:
    """A context manager around a running collector.

    Args:
        environments: processes of `ParallelEnv`.
        chunked: the view executes whole chunks and renders once; else `MultiAction` executes them, as TorchRL's own
            recipe does, and the environment renders at every env step, as Gymnasium environments do.
    """

    def __init__(self, suite: SuiteConfig, policy: Policy, environments: int, episodes: int, chunked: bool) -> None:
        length = policy.chunk_length
        built = make_suite(suite)
        env = ParallelEnv(
            environments, make_env, create_env_kwargs={"suite": suite, "chunk_length": length if chunked else None}
        )
        decisions = max(-(-task.horizon // length) for task in built.tasks)
        self.collector = Collector(
            env if chunked else TransformedEnv(env, MultiAction(stack_rewards=False)),
            PolicyModule(policy, [task.instruction for task in built.tasks]),
            frames_per_batch=environments * decisions,
            total_frames=-1,
            trajs_per_batch=episodes,
            traj_format="cat",
            exploration_type=ExplorationType.RANDOM,
        )
        self.batches = iter(self.collector)
        self.chunk_length = length

    def __enter__(self) -> "TorchRLRollout":
        return self

    def __exit__(self, *_: object) -> None:
        self.collector.shutdown()

    def env_steps_per_second(self) -> float:
        """Of complete episodes; a decision counts as a whole chunk, in TorchRL's favour, as its recipe counts."""
        started = time.perf_counter()
        batch = next(self.batches)
        return self.chunk_length * len(batch) / (time.perf_counter() - started)
