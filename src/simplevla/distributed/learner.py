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

from simplevla.config import SFTConfig, TrainConfig
from simplevla.distributed.cluster import cause_of, check_resources, connect, surroundings
from simplevla.distributed.files import packed, unpacked
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.policies.towers import layers
from simplevla.training.chunks import ChunkBatch
from simplevla.training.determinism import deterministic
from simplevla.training.imitator import Imitator
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
        # Gradients are kept in the buckets that are sent, and not a second time beside them.
        replicate(policy, gradient_as_bucket_view=True)
        return
    mesh = init_device_mesh(next(policy.parameters()).device.type, (dist.get_world_size(),))
    for module in (*layers(policy), policy):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


class LearnerActor:
    """One rank, of RL or of SFT. All ranks get the same calls and the same work, of which each does its micro-batches.

    Args:
        address: host and port at which rank 0 listens; of rank 0's machine.
        files: the policy, as `packed` made it.
    """

    def __init__(self, rank: int, config: TrainConfig | SFTConfig, files: dict[str, bytes]) -> None:
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
        self._learner: Learner | Imitator
        if isinstance(self._config, SFTConfig):
            divide(policy, settings.divide)
            self._learner = Imitator(policy, self._config)
            return
        policy.prepare_for_rl(self._config)
        divide(policy, settings.divide)
        self._learner = Learner(policy, self._config)

    def update(self, *work: Any) -> dict[str, float]:
        """See `Learner.update` and `Imitator.update`."""
        with deterministic(self._device.type):
            return self._learner.update(*work)

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, whole, on the CPU; nothing but from rank 0, which is enough."""
        trained = self._learner.optimizer.parameters
        tensors = {name: full_tensor(p.detach()).cpu() for name, p in trained.items()}
        return tensors if self._rank == 0 else {}

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Learner.optimizer_state`; from rank 0."""
        state = self._learner.optimizer_state()
        return state if self._rank == 0 else {}

    def load_optimizer_state(self, tensors: dict[str, Tensor], optimizer_steps: int) -> None:
        """See `Learner.load_optimizer_state`."""
        self._learner.load_optimizer_state(tensors, optimizer_steps)


class _Ranks:
    """The ranks as Ray actors, and the driver's policy, which gets what they have trained.

    Raises:
        UserError: the cluster can't be reached or lacks what `config.ray` asks for.
    """

    def __init__(self, policy: Policy, config: TrainConfig | SFTConfig) -> None:
        connect(config.ray)
        check_resources(config.ray, ray.cluster_resources())
        self.policy, self.optimizer_steps = policy, 0
        files = ray.put(packed(policy))
        remote = ray.remote(LearnerActor).options(
            num_cpus=config.ray.learner_cpus, num_gpus=config.ray.learner_gpus, runtime_env=surroundings()
        )
        self._ranks = [remote.remote(rank, config, files) for rank in range(config.ray.learners)]
        address = _result([self._ranks[0].address.remote()])[0]
        _result([rank.join.remote(address) for rank in self._ranks])

    def _update(self, shared: Any, *work: Any) -> dict[str, float]:
        """Metrics of an update; `shared` travels once."""
        reference = ray.put(shared)
        stats: dict[str, float] = _result([rank.update.remote(reference, *work) for rank in self._ranks])[0]
        return stats

    def sync(self) -> None:
        """Gives the driver's policy the weights that the ranks have trained."""
        weights = _result([rank.weights.remote() for rank in self._ranks])[0]
        parameters = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)

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


class RayLearner(_Ranks):
    """Has the interface of a `Learner`."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        policy.prepare_for_rl(config)
        super().__init__(policy, config)

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
        """See `Learner.update`."""
        stats = self._update([list(group) for group in groups], advantages, update)
        self.optimizer_steps += int(stats["optimizer_steps"])
        self.sync()
        return stats


class RayImitator(_Ranks):
    """Has the interface of an `Imitator`."""

    def __init__(self, policy: Policy, config: SFTConfig) -> None:
        policy.compute_in(config.precision)
        super().__init__(policy, config)

    def update(self, batch: ChunkBatch, number: int) -> dict[str, float]:
        """See `Imitator.update`."""
        return self._update(batch, number)


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
            f"a learner process was lost ({reason}); the last checkpoint is intact: go on with simplevla train --resume, or sft "
            "--resume"
        ) from None
    return answers
