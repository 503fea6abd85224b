"""Several processes train one policy: the update is one process's."""

import math
import socket
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import multiprocessing

import small_tinyvla as small
from adapted_tinyvla import sampled_group
from simplevla.config import OptimizerConfig, TrainConfig
from simplevla.distributed.learner import divide
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.training.learner import Learner, UpdateRefused
from simplevla.training.ranks import whole
from simplevla.types import Episode

CONFIG = TrainConfig(minibatches=2, microbatch_decisions=3, optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1))
RANKS = 2


def groups(policy: TinyVLA) -> list[list[Episode]]:
    """Two groups; five micro-batches of the first don't divide by two."""
    return [sampled_group(policy), sampled_group(policy)]


def two_updates(how: Literal["alone", "full", "copies"], folder: Path) -> None:
    """Write the policy and the optimizer after two updates, the second after a resume, and the first one's metrics."""
    policy = small.make()
    wanted = [groups(policy), groups(policy)]
    if how != "alone":
        divide(policy, how)
    learner = Learner(policy, CONFIG)
    stats = learner.update(wanted[0], 1)
    state = learner.optimizer_state()
    again = Learner(policy, CONFIG)
    again.load_optimizer_state(state, learner.optimizer_steps)
    again.update(wanted[1], 2)
    tensors = {name: whole(p.detach()).contiguous().clone() for name, p in policy.named_parameters()}
    if how == "full":
        # Each rank keeps half of what it can divide.
        kept = sum(p.to_local().numel() for p in policy.parameters())  # type: ignore[operator]
        assert kept < 0.55 * sum(p.numel() for p in policy.parameters())
    broken = wanted[0][0][0]
    broken.logprobs = np.full_like(broken.logprobs, math.nan)
    with pytest.raises(UpdateRefused, match="the loss is nan"):
        again.update(wanted[0], 3)
    if how == "alone" or dist.get_rank() == 0:
        metrics = {f"stat/{name}": torch.tensor(value) for name, value in stats.items() if name != "update_s"}
        save_file(
            tensors | {f"state/{name}": value for name, value in state.items()} | metrics, folder / f"{how}.safetensors"
        )


def rank(number: int, how: Any, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=RANKS)
    two_updates(how, folder)
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["full", "copies"])
def test_two_processes_update_as_one_does(how: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two_updates("alone", tmp_path)
    multiprocessing.spawn(rank, (how, tmp_path, port), RANKS)
    alone, together = (load_file(tmp_path / f"{name}.safetensors") for name in ("alone", how))
    assert alone.keys() == together.keys()
    start = dict(small.make().named_parameters())
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    moved = [name for name, value in start.items() if (alone[name] - value).abs().max() > 1e-4]
    assert len(moved) > 0.8 * len(start)
