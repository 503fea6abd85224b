"""A policy at a published size, random weights: an SFT step, a rollout, an RL update; time and peak memory of each.

    python -m benchmarks.speed.policy_sizes tinyvla_s
    python -m benchmarks.speed.policy_sizes smolvla_450m

Every way to train runs in a process of its own. Writes docs/results/SIZE.json and .md.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.support.machine import this_machine
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.structures import first_observations
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.config import (
    DenoisingConfig,
    Head,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
)
from simplevla.evaluation.provenance import commit
from simplevla.policies.base import Sampling
from simplevla.policies.normalization import Statistics
from simplevla.policies.registry import with_preset
from simplevla.recipes import tabletop
from simplevla.rollout.collect import rewards
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner
from simplevla.training.learning_rate import with_learning_rate
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

RESULTS = Path(__file__).parents[2] / "docs" / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WAYS = {
    "tinyvla": {
        "full": "all parameters, activations checkpointed",
        "adapter": "LoRA, rank 32, all linear layers and convolutions, activations checkpointed",
        "frozen_backbone": "U-Net alone, condition stored with the rollout",
    },
    "smolvla": {
        "full": "expert and projections, activations checkpointed",
        "adapter": "LoRA, rank 32, all linear layers and convolutions, activations checkpointed",
        "frozen_backbone": "expert and projections, keys and values stored with the rollout",
    },
}
HEADS: dict[str, Head] = {"tinyvla": "diffusion", "smolvla": "flow"}
CHUNKS = {"tinyvla": 16, "smolvla": 50}
SIBLINGS = 2
DECISIONS = 2
"""Per episode: its horizon is cut to them."""


def statistics(dimensions: int) -> dict[str, list[float]]:
    values = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    return {name: [value] * dimensions for name, value in values.items()}


def memory_gb() -> float:
    """The most that this process ever had: on the GPU where there is one, else resident."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def flops_per_s() -> float:
    """Rate of products of square float32 matrices of 4096, the best of five."""
    one = torch.randn(4096, 4096, device=DEVICE)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        float((one @ one)[0, 0])
        seconds.append(time.perf_counter() - started)
    return 2 * 4096**3 / min(seconds)


def measure(size: str, way: str) -> dict:
    family = size.partition("_")[0]
    chunk = CHUNKS[family]
    suite = make_suite(tabletop.SUITE)
    spec = suite.spec
    policy = (
        with_preset(size)
        .create(
            size,
            cameras=list(spec.cameras),
            state_dim=len(spec.state_names),
            action_dim=len(spec.action_names),
            chunk_length=chunk,
            instructions=[task.instruction for task in suite.tasks],
            statistics=Statistics(state=statistics(len(spec.state_names)), action=statistics(len(spec.action_names))),
            head=HEADS[family],
        )
        .to(DEVICE)
    )
    found: dict[str, float] = {"million_parameters": sum(p.numel() for p in policy.parameters()) / 1e6}
    denoising = DenoisingConfig(frozen_backbone=way == "frozen_backbone")
    if way == "adapter":
        bank = AdapterBank(policy)
        bank.add("task", AdapterConfig())
        bank.activate("task", training=True)
    policy.prepare_for_rl(TrainConfig(denoising=denoising))
    found["million_trained"] = sum(p.numel() for p in policy.parameters() if p.requires_grad) / 1e6
    found["loaded_gb"] = memory_gb()

    batch = first_observations(suite)
    batch = replace(
        batch,
        images={camera: image[:1] for camera, image in batch.images.items()},
        state=batch.state[:1],
        instructions=batch.instructions[:1],
    )
    policy.eval()
    # Before activations are checkpointed, which leaves hooks that counting doesn't bear without gradients.
    with FlopCounterMode(display=False) as acted:
        policy.act(batch.to(DEVICE), Sampling(), [np.random.default_rng(0)])
    imitation = SFTConfig(batches=10, gradient_checkpointing=way != "frozen_backbone")
    imitator = Imitator(policy, replace(imitation, optimizer=with_learning_rate(imitation.optimizer, policy, "sft")))
    started = time.perf_counter()
    actions = torch.zeros(1, chunk, len(spec.action_names))
    mask = torch.ones(1, chunk, dtype=torch.bool)
    imitator.update(ChunkBatch(observations=batch, actions=actions, mask=mask), 0)
    found["sft_step_s"] = time.perf_counter() - started
    found["sft_gb"] = memory_gb()
    del imitator

    policy.eval()
    task = replace(suite.tasks[0], horizon=DECISIONS * chunk)
    requests = [
        EpisodeRequest(task=task, initial_state=suite.initial_states(task, "train")[0], seed=(0, i))
        for i in range(SIBLINGS)
    ]
    episodes: list[Episode] = []
    with RolloutEngine(tabletop.SUITE, RolloutConfig(workers=1, slots_per_worker=SIBLINGS), chunk) as engine:
        queue = iter(requests)
        started = time.perf_counter()
        engine.run(policy, Sampling(), lambda: next(queue, None), episodes.append)
        decisions = engine.stats.decisions
    found["rollout_decisions_per_s"] = decisions / (time.perf_counter() - started)
    found["rollout_gb"] = memory_gb()
    # Random weights solve nothing; one sibling is called solved so that there is an update to measure.
    for number, episode in enumerate(episodes):
        episode.status = EpisodeStatus.SUCCESS if number == 0 else EpisodeStatus.TIMEOUT
    found["bytes_per_decision"] = np.mean(
        [
            (sum(x.nbytes for x in e.images.values()) + e.trace.nbytes + e.logprobs.nbytes + e.state.nbytes)
            / len(e.executed)
            for e in episodes
        ]
    )
    config = TrainConfig(
        # So small that the second update of the same episodes isn't refused.
        optimizer=OptimizerConfig(lr=1e-9),
        minibatches=1,
        microbatch_decisions=1,
        sampling=SamplingConfig(groups=1, group_size=SIBLINGS),
        denoising=denoising,
        gradient_checkpointing=way != "frozen_backbone",
        device=str(DEVICE),
    )
    learner = Learner(policy, config)
    advantages = group_relative_advantages(rewards([episodes]))
    with FlopCounterMode(display=False) as learned:
        first = learner.update([episodes], advantages, 1)
    # Counting takes time, so that another update is timed.
    stats = learner.update([episodes], advantages, 2)
    assert first["optimizer_steps"] == stats["optimizer_steps"] == 1
    found["update_decisions_per_s"] = stats["decisions"] / stats["update_s"]
    found["logprob_gap"] = first["logprob_gap"]
    found["update_gb"] = memory_gb()
    found["act_gflop"] = acted.get_total_flops() / 1e9
    found["update_gflop"] = learned.get_total_flops() / 1e9 / first["decisions"]
    found["matrix_gflop_per_s"] = flops_per_s() / 1e9
    return found


def share(way: dict, counted: str, timed: str) -> float:
    """Operations per second as a part of the matrix rate."""
    return way[f"{counted}_gflop"] * way[f"{timed}_decisions_per_s"] / way["matrix_gflop_per_s"]


def main(size: str) -> None:
    ways, family = {}, size.partition("_")[0]
    titles, chunk = WAYS[family], CHUNKS[family]
    for way in titles:
        command = [sys.executable, "-m", "benchmarks.speed.policy_sizes", size, way]
        output = subprocess.run(command, capture_output=True, text=True)
        if output.returncode:
            raise SystemExit(f"{way}: {output.stderr[-2000:]}")
        ways[way] = json.loads(output.stdout.splitlines()[-1])
        print(way, ways[way], flush=True)
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else this_machine()
    result = {"size": size, "machine": machine, "commit": commit(), "chunk": chunk, "ways": ways}
    write_json(RESULTS / f"{size}.json", result)
    rows = [
        f"| {titles[way]} | {x['million_trained']:.1f} | {x['sft_step_s']:.2f} | {x['rollout_decisions_per_s']:.2f} | {x['update_decisions_per_s']:.2f} "
        f"| {share(x, 'act', 'rollout'):.0%} | {share(x, 'update', 'update'):.0%} |"
        for way, x in ways.items()
    ]
    memory = [
        f"| {titles[way]} | {x['loaded_gb']:.1f} | {x['sft_gb']:.1f} | {x['rollout_gb']:.1f} | {x['update_gb']:.1f} "
        f"| {x['bytes_per_decision'] / 1e3:.1f} | {x['logprob_gap']:.1e} |"
        for way, x in ways.items()
    ]
    full, adapter, frozen = (ways[way]["update_gb"] for way in titles)
    text = f"""# {size}: one SFT step, one rollout, one RL update

SFT, rollouts and an RL update of {ways["full"]["million_parameters"]:.0f} M parameters need {full:.1f} GB with {titles["full"].partition(",")[0]} trained, {adapter:.1f} GB with LoRA and {frozen:.1f} GB with {titles["frozen_backbone"].partition(",")[0]} and no backbone in the update.

| trained | M parameters | s per SFT step | rollout, decisions/s | update, decisions/s | rollout, of the matrix rate | update |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Memory in GB, the most that the process had so far; kB stored for each decision; and the gap of log-probabilities before the first optimizer step:

| trained | loaded | SFT | rollout | update | kB per decision | gap, nats |
|---|---|---|---|---|---|---|
{chr(10).join(memory)}

- Command: `python -m benchmarks.speed.policy_sizes {size}`. Machine: {machine}, {torch.get_num_threads()} thread(s). Commit {result["commit"]}. Data: `{size}.json`. One run.
- Random weights, float32, {HEADS[family]} head with 10 steps, chunks of {chunk}, two cameras of `tabletop` resized by the policy.
- The matrix rate is that of products of square float32 matrices of 4096, {ways["full"]["matrix_gflop_per_s"]:.0f} GFLOP/s; simulators are in the rollout's share.
- Batches and micro-batches of 1; {SIBLINGS} episodes of {DECISIONS} decisions. Random weights solve nothing: for the update one of {SIBLINGS} siblings is called solved.
"""
    write_atomically(RESULTS / f"{size}.md", text.encode())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        torch.manual_seed(0)
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main(sys.argv[1])
