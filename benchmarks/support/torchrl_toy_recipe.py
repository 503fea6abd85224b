"""TorchRL's toy recipe: the published settings and the wheel's own factories, acted by the policy in this process.

Its own script acts through a server in another process, which takes minutes for an iteration on two cores.
"""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torchrl
from torchrl.envs.utils import ExplorationType, set_exploration_type

from benchmarks.support.toy_vla import CHUNK_LENGTH, DECISIONS, PUBLISHED

ITERATIONS, EVAL_EVERY, EVAL_EPISODES = 200, 10, 50
GROUPS, GROUP_SIZE = 8, 4
DECISIONS_PER_UPDATE = GROUPS * GROUP_SIZE * DECISIONS
"""Decisions of mixed groups that TorchRL's script waits for before an update."""


def settings(seed: int) -> SimpleNamespace:
    """The parts of vla_grpo_toy.yaml that the factories used here read."""
    sections: dict[str, dict[str, Any]] = {
        "env": {
            **PUBLISHED,
            "backend": "toy",
            "chunk_size": CHUNK_LENGTH,
            "max_outer_steps": DECISIONS,
            "render_size": 64,
            "seed": seed,
        },
        "tokenizer": {"vocab_size": 64},
        "policy": {"backend": "tiny", "hidden_dim": 128},
        "collector": {"group_size": GROUP_SIZE, "candidate_group_size": None, "groups_per_iter": GROUPS},
        "advantage": {
            "trajectory_return": "sum",
            "keep_return_bounds": (0.05, 0.95),
            "candidate_selection": "balanced",
            "candidate_selection_min_size": None,
            "candidate_selection_max_combinations": 100_000,
        },
        "buffer": {"shared_init": False, "capacity_group_waves": 1, "consume_after_n_samples": 1},
        "loss": {
            "clip_epsilon": (0.2, 0.28),
            "ratio_level": "sequence",
            "mini_batch_size": 64,
            "accumulate_batches": 1,
        },
        "optim": {"lr": 1e-3, "weight_decay": 0.0, "warmup_updates": 1, "max_grad_norm": 1.0},
    }
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in sections.items()})


def factories() -> ModuleType:
    """`utils.py` beside the recipe in the wheel."""
    file = Path(torchrl.__file__).parents[1] / "sota-implementations" / "vla_grpo" / "utils.py"
    spec = importlib.util.spec_from_file_location("torchrl_vla_grpo", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def untrained(seed: int) -> tuple[ModuleType, SimpleNamespace, Any, Any, Any]:
    """The factories, their settings, a policy with random weights, and environments for training and for tests."""
    utils, cfg, cpu = factories(), settings(seed), torch.device("cpu")
    torch.manual_seed(seed)
    policy = utils.make_policy(cfg, cpu)
    tokenizer = utils.make_action_tokenizer(cfg, policy)
    env = utils.make_env(cfg, tokenizer, group_repeats=GROUP_SIZE, seed=seed)
    tests = utils.make_env(cfg, tokenizer, seed=seed + 1)
    with torch.no_grad():
        policy(env.reset())  # its layers are lazy
    return utils, cfg, policy, env, tests


def parameters() -> int:
    """Numbers that TorchRL's policy has."""
    return sum(parameter.numel() for parameter in untrained(0)[2].parameters())


def curve(seed: int, seconds: float) -> Iterator[dict[str, float]]:
    """Greedy success each ten iterations, with env steps and minutes of training; until `seconds` are over."""
    (utils, cfg, policy, env, tests), cpu = untrained(seed), torch.device("cpu")
    buffer, advantage = utils.make_replay_buffer(cfg, cpu)
    loss = utils.make_loss_module(cfg, policy)
    optimizer, scheduler = utils.make_optimizer(cfg, loss)
    steps, trained, began = 0, 0.0, time.monotonic()
    for iteration in range(ITERATIONS + 1):
        if iteration % EVAL_EVERY == 0:
            with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
                solved = sum(
                    bool(tests.rollout(DECISIONS, policy)["next", "success"].any()) for _ in range(EVAL_EPISODES)
                )
            yield {
                "iteration": iteration,
                "env_steps": steps,
                "minutes": trained / 60,
                "success": solved / EVAL_EPISODES,
            }
        if iteration == ITERATIONS or time.monotonic() - began > seconds:
            return
        start = time.monotonic()
        while len(buffer) < DECISIONS_PER_UPDATE:
            with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
                episode = env.rollout(DECISIONS, policy)
            steps += CHUNK_LENGTH * episode.numel()
            buffer.extend(episode.reshape(-1))
        utils.update(buffer, loss, optimizer, scheduler, cfg, cpu, iteration=iteration)
        advantage.clear_queues()
        trained += time.monotonic() - start
