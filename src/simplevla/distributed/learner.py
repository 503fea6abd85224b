"""One policy trained by several processes: data-parallel, its parameters divided among them (FSDP2) or copied (DDP)."""

import socket
from collections.abc import Sequence
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor
from torch.distributed._composable import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from simplevla.config import TrainConfig
from simplevla.distributed.cluster import cause_of, check_resources, connect, surroundings
from simplevla.distributed.files import packed, unpacked
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.policies.towers import layers
from simplevla.training.determinism import deterministic
from simplevla.training.learner import Learner
from simplevla.training.ranks import full_tensor
from simplevla.types import Episode


def divide(policy: Policy, how: Literal["full", "copies"]) -> None:
    """Prepares a policy that each rank has a copy of for being trained by all ranks of the process group.

    Args:
        how: `full`: each rank keeps its part of every parameter, gathered layer by layer when needed (FSDP2); `copies`:
            each rank keeps all, and gradients are averaged (DDP). Gradients of bfloat16 parameters are averaged in
            float32 by `full` and in bfloat16 by `copies`.
    """
    for parameter in policy.parameters():
        parameter.data = parameter.data.contiguous()
    if how == "copies":
        replicate(policy)
        return
    mesh = init_device_mesh(next(policy.parameters()).device.type, (dist.get_world_size(),))
    for module in (*layers(policy), policy):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


class LearnerActor:
    """One rank. All ranks get the same calls and the same groups, of which each works on its micro-batches.

    Args:
        address: host and port at which rank 0 listens; of rank 0's machine.
        files: the policy, as `packed` made it.
    """

    def __init__(self, rank: int, config: TrainConfig, files: dict[str, bytes]) -> None:
        self._rank, self._config, self._files = rank, config, files
        self._device = torch.device("cuda" if config.ray.learner_gpus else "cpu")

    def address(self) -> str:
        """A free port of this machine."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"

    def join(self, address: str) -> None:
        """Meets the other ranks, and divides the policy with them."""
        settings = self._config.ray
        # Sums of metrics are on the CPU.
        backend = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=self._rank, world_size=settings.learners)
        policy = unpacked(self._files)
        policy.to(self._device)
        self._files = {}
        policy.prepare_for_rl(self._config)
        if policy.scores_from_trace:
            raise UserError("denoising.frozen_backbone trains a small head alone; leave ray.learners at 0 for it")
        divide(policy, settings.divide)
        self._learner = Learner(policy, self._config)

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
        """See `Learner.update`."""
        with deterministic(self._device.type):
            return self._learner.update(groups, advantages, update)

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, whole, on the CPU; nothing but from rank 0, which is enough."""
        tensors = {name: full_tensor(p.detach()).cpu() for name, p in self._learner.trainable.items()}
        return tensors if self._rank == 0 else {}

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Learner.optimizer_state`; from rank 0."""
        state = self._learner.optimizer_state()
        return state if self._rank == 0 else {}

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """See `Learner.load_optimizer_state`."""
        self._learner.load_optimizer_state(tensors, optimizer_steps)


class RayLearner:
    """Has the interface of a `Learner`, with the ranks as Ray actors; the driver's policy follows them.

    Raises:
        UserError: the cluster can't be reached or lacks what `config.ray` asks for.
    """

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        connect(config.ray)
        check_resources(config.ray, ray.cluster_resources())
        self.policy, self.optimizer_steps = policy, 0
        policy.prepare_for_rl(config)
        files = ray.put(packed(policy))
        remote = ray.remote(LearnerActor).options(
            num_cpus=config.ray.learner_cpus, num_gpus=config.ray.learner_gpus, runtime_env=surroundings()
        )
        self._ranks = [remote.remote(rank, config, files) for rank in range(config.ray.learners)]
        address = _result([self._ranks[0].address.remote()])[0]
        _result([rank.join.remote(address) for rank in self._ranks])

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
        """See `Learner.update`. The groups travel once."""
        shared = ray.put([list(group) for group in groups])
        stats: dict[str, float] = _result([rank.update.remote(shared, advantages, update) for rank in self._ranks])[0]
        self.optimizer_steps += int(stats["optimizer_steps"])
        weights = _result([rank.weights.remote() for rank in self._ranks])[0]
        parameters = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        return stats

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Learner.optimizer_state`."""
        state: dict[str, Tensor] = _result([rank.optimizer_state.remote() for rank in self._ranks])[0]
        return state

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """See `Learner.load_optimizer_state`."""
        shared = ray.put(tensors)
        _result([rank.load_optimizer_state.remote(shared, optimizer_steps) for rank in self._ranks])
        self.optimizer_steps = optimizer_steps

    def close(self) -> None:
        """Ends the ranks; so does the end of the process."""
        for rank in self._ranks:
            ray.kill(rank)


def _result(futures: list[Any]) -> list[Any]:
    """Answers of all ranks.

    Raises:
        UserError: a rank was lost; what one raised is raised as it was.
    """
    try:
        answers: list[Any] = ray.get(futures)
    except RayTaskError as error:
        raise cause_of(error) from None
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"a learner process was lost ({reason}); the last checkpoint is intact: go on with simplevla train --resume"
        ) from None
    return answers
