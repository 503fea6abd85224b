"""Plan of a recipe on a machine, before it is run: does it fit, and how long does an update take."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from simplevla import checked
from simplevla.checked import Above0, Count
from simplevla.config import SFTConfig, SuiteConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.planning.cost import Actor, Counts, PolicyCost, UpdateCost, rollout_parts
from simplevla.planning.footprint import Footprint, rollout_footprint, update_footprint
from simplevla.planning.measured import measured, simulator_key
from simplevla.planning.memory import Memory, Sizes, device_memory, sizes_of, stored_episodes
from simplevla.planning.unfilled import supervised
from simplevla.policies.base import Policy
from simplevla.policies.load import check_fits_suite
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite

TFLOPS = 396.0
"""Assumed: an H100 at 40 % of its 990 dense bfloat16 TFLOP/s."""
GPU_MEMORY_RATE = 3.35e12
"""Bytes/s, an H100 SXM's data sheet: every policy batch reads all weights."""
NVLINK, NETWORK = 450e9, 50e9
"""Assumed: bytes/s of a GPU to the others of its machine, and to other machines (one port of 400 Gbit/s each)."""
OBJECT_STORE = 2e9
"""Assumed: bytes/s at which one process hands weights to Ray's object store, and a machine fetches them."""
GPUS_PER_MACHINE, CORES_PER_GPU = 8, 16
EPISODE_SHARE, SAMPLED_PER_TRAINED = 0.4, 1.5
"""Assumed where no rollout of the suite was measured: an episode's length as a share of its horizon (25 of 64
decisions), and episodes that are sampled per episode that trains."""


@checked.dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to plan for; with `gpus` 0 a CPU machine like the one whose costs were measured."""

    gpus: Count
    memory_gb: Above0
    """Memory of each GPU, or of the host if there is none; GB of 1e9 bytes."""
    cores: Count = 0
    """CPU cores; 0 means two without a GPU, else 16 per GPU."""
    simulators: Count = 0
    """Environments in all; 0: what the recipe says, for each GPU."""
    tflops: Above0 = TFLOPS
    """TFLOP/s that each GPU reaches."""

    def __post_init__(self) -> None:
        if self.simulators and self.simulators < self.gpus:
            raise UserError(
                f"{self.simulators} simulators for {self.gpus} GPUs; expected at least one for each, since each has its own"
            )


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Sizes and batches of a policy in a run."""

    sizes: Sizes
    update: Footprint
    """Footprint of a micro-batch."""
    batch: Footprint
    """Footprint of a policy batch."""

    def memory(self, config: TrainConfig, gpus: int) -> Memory:
        """Memory of a GPU, or of the CPU process; see `device_memory`."""
        return device_memory(self.sizes, config, gpus, self.update, self.batch)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Expected memory and seconds of an update."""

    traced: Traced
    memory: Memory
    """Memory of each GPU, or of the host."""
    host: dict[str, int]
    """Bytes on the host, beside GPUs."""
    counts: Counts
    """Counts of a rollout."""
    trained_decisions: float
    actor: Actor
    policy: PolicyCost
    rollout: dict[str, float]
    """Seconds by part, see `rollout_parts`."""
    update_s: float
    weights_s: float
    """Seconds until the rollout actors have the trained weights."""
    fits: bool

    @property
    def sizes(self) -> Sizes:
        """Sizes of the policy."""
        return self.traced.sizes

    @property
    def seconds(self) -> float:
        """Seconds of an update: rollout, training, weights, one after another."""
        return max(self.rollout.values()) + self.update_s + self.weights_s

    @property
    def bottleneck(self) -> str:
        """The part of an update that takes longest."""
        slowest = max(self.rollout, key=lambda part: self.rollout[part])
        parts = {f"rollout ({slowest})": max(self.rollout.values()), "update": self.update_s, "weights": self.weights_s}
        return max(parts, key=lambda part: parts[part])


def traced(config: TrainConfig, policy: Policy, machine: Machine) -> Traced:
    """Sizes and batches of a policy on the meta device."""
    suite = make_suite(config.suite)
    check_fits_suite(policy, suite.spec)
    policy.prepare_for_rl(config)
    instruction = max((task.instruction for task in suite.tasks), key=len)
    rows, checkpointing = config.microbatch_decisions, config.gradient_checkpointing
    return Traced(
        sizes=sizes_of(policy, suite.spec),
        update=update_footprint(policy, suite.spec, instruction, rows, checkpointing),
        batch=rollout_footprint(policy, suite.spec, instruction, math.ceil(_actor(config, suite, machine).rows)),
    )


def plan(config: TrainConfig, policy: Policy, machine: Machine) -> Plan:
    """The plan for a policy on the meta device.

    Raises:
        UserError: nobody has measured this suite's simulator.
    """
    suite = make_suite(config.suite)
    known_policy = traced(config, policy, machine)
    sizes, update, batch = known_policy.sizes, known_policy.update, known_policy.batch
    gpus, actors = machine.gpus, max(1, machine.gpus)
    actor = _actor(config, suite, machine)
    memory = known_policy.memory(config, gpus)
    counts, trained_decisions = workload(config, suite, policy.chunk_length)
    height, _ = next(iter(suite.spec.cameras.values()))
    key = simulator_key(config.suite, height)
    known = measured()
    if key not in known.simulators:
        raise UserError(f"no measured costs of {key!r}; there are: {'; '.join(known.simulators)}")
    episodes = stored_episodes(sizes, config, trained_decisions / (config.sampling.groups * config.sampling.group_size))
    host = {"stored episodes": episodes, "simulators": math.ceil(1e6 * _worker_mb(key) * actor.workers * actors)}
    if gpus > 1:
        host["the driver's policy"] = sizes.weight_bytes
    elif gpus == 0:
        memory = replace(memory, kept=memory.kept | host)
        host = {}
    policy_cost, update_cost = (
        _on_gpu(sizes, update, batch, config.microbatch_decisions, math.ceil(actor.rows), machine.tflops)
        if gpus
        else _on_cpu(update, batch, config.microbatch_decisions, math.ceil(actor.rows))
    )
    computing = update_cost.constant + update_cost.per_decision * trained_decisions / actors
    return Plan(
        traced=known_policy,
        memory=memory,
        host=host,
        counts=counts,
        trained_decisions=trained_decisions,
        actor=actor,
        policy=policy_cost,
        rollout=rollout_parts(counts, known.simulators[key], policy_cost, known.handling, actor, actors),
        update_s=max(computing, exchange_seconds(sizes, config, gpus, trained_decisions)),
        weights_s=weights_seconds(sizes, gpus),
        fits=memory.total <= 1e9 * machine.memory_gb,
    )


def _actor(config: TrainConfig, suite: Suite, machine: Machine) -> Actor:
    actors = max(1, machine.gpus)
    cores = max(1, (machine.cores or (CORES_PER_GPU * machine.gpus if machine.gpus else measured().cores)) // actors)
    workers = config.rollout.workers or cores
    if not machine.simulators:
        per_worker = 1 if suite.one_environment_per_process else config.rollout.slots_per_worker
        return Actor(cores=cores, workers=workers, slots=workers * per_worker, on_gpu=machine.gpus > 0)
    slots = machine.simulators // actors
    workers = slots if suite.one_environment_per_process else min(workers, slots)
    return Actor(cores=cores, workers=workers, slots=slots, on_gpu=machine.gpus > 0)


def workload(config: TrainConfig, suite: Suite, chunk_length: int) -> tuple[Counts, float]:
    """Counts of the sampled episodes of an update, and the number of decisions that train.

    On `tabletop` they come from measured episodes, else from assumptions."""
    wanted = config.sampling.groups * config.sampling.group_size
    horizon = max(task.horizon for task in suite.tasks)
    if config.suite.name == "tabletop":
        rows, ratio = measured().episodes["tabletop"], measured().sampled_per_trained
        env_steps = float(np.mean([steps for steps, _ in rows]))
        decisions = float(np.mean([decisions for _, decisions in rows]))
    else:
        env_steps, ratio = EPISODE_SHARE * horizon, SAMPLED_PER_TRAINED
        decisions = env_steps / chunk_length
    sampled = wanted * (ratio if config.sampling.dynamic else 1.0)
    counts = Counts(
        env_steps=sampled * env_steps,
        decisions=sampled * decisions,
        episodes=sampled,
        longest=math.ceil(horizon / chunk_length),
    )
    return counts, wanted * decisions


def _worker_mb(key: str) -> float:
    """Measured memory of a worker of the same suite, whatever the image size, MB; if none was measured, the largest."""
    known = measured().worker_mb
    return next(
        (size for name, size in known.items() if name.split(" px")[0].rsplit(",", 1)[0] in key), max(known.values())
    )


def _on_gpu(
    sizes: Sizes, update: Footprint, batch: Footprint, update_rows: int, rows: int, tflops: float
) -> tuple[PolicyCost, UpdateCost]:
    policy = PolicyCost(batch=sizes.weight_bytes / GPU_MEMORY_RATE, row=batch.flops / rows / (1e12 * tflops))
    return policy, UpdateCost(constant=0.0, per_decision=update.flops / update_rows / (1e12 * tflops))


def _on_cpu(update: Footprint, batch: Footprint, update_rows: int, rows: int) -> tuple[PolicyCost, UpdateCost]:
    """Costs on a CPU: the nano policy's measured ones, scaled by the numbers of multiplications."""
    suite = make_suite(SuiteConfig(name="tabletop"))
    nano = supervised(SFTConfig(policy="nano", chunk_length=4), suite)
    instruction, known = suite.tasks[0].instruction, measured()
    acting = batch.flops / rows / (rollout_footprint(nano, suite.spec, instruction, 8).flops / 8)
    learning = update.flops / update_rows / (update_footprint(nano, suite.spec, instruction, 8, False).flops / 8)
    policy = PolicyCost(batch=known.nano.batch * acting, row=known.nano.row * acting)
    return policy, UpdateCost(constant=known.update.constant, per_decision=known.update.per_decision * learning)


def exchange_seconds(sizes: Sizes, config: TrainConfig, gpus: int, decisions: float) -> float:
    """Seconds of the learners' exchange in an update, at the slowest link; it overlaps with the computing.

    FSDP2 gathers all weights twice per micro-batch and divides the gradients of the trained ones. Copies (DDP) average
    gradients once per micro-batch."""
    if gpus <= 1:
        return 0.0
    link = NVLINK if gpus <= GPUS_PER_MACHINE else NETWORK
    micro_batches = math.ceil(decisions / gpus / config.microbatch_decisions)
    gradients = 2 * sizes.trained_half + 4 * (sum(sizes.trained) - sizes.trained_half)
    moved = 2 * sizes.weight_bytes + gradients if config.ray.divide == "full" else 2 * gradients
    return micro_batches * moved * (gpus - 1) / gpus / link


def weights_seconds(sizes: Sizes, gpus: int) -> float:
    """Seconds that trained weights take through the driver and the object store to the machines, one after another."""
    if gpus <= 1:
        return 0.0
    trained = 2 * sizes.trained_half + 4 * (sum(sizes.trained) - sizes.trained_half)
    return (1 + math.ceil(gpus / GPUS_PER_MACHINE)) * trained / OBJECT_STORE


def remedies(
    now: Traced, config: TrainConfig, make_policy: Callable[[int], Policy], adapter_rank: int, machine: Machine
) -> list[str]:
    """Changes, each of which alone would make the recipe fit.

    Args:
        now: the policy as it was planned with.
        make_policy: gives the policy with an adapter of a rank, 0 for none.
    """
    room = 1e9 * machine.memory_gb
    found = []
    small = replace(config, microbatch_decisions=1, gradient_checkpointing=True)
    if traced(small, make_policy(adapter_rank), machine).memory(small, machine.gpus).total <= room:
        found.append("smaller micro-batches (--gradient-checkpointing --microbatch-decisions 1, or a few)")
    quantised = replace(config, optimizer=replace(config.optimizer, moments="8bit"))
    if now.memory(quantised, machine.gpus).total <= room:
        found.append("8-bit moments (--optimizer.moments 8bit)")
    if not adapter_rank and traced(config, make_policy(32), machine).memory(config, machine.gpus).total <= room:
        found.append("an adapter of rank 32 (--adapter-rank 32)")
    more = [gpus for gpus in (2, 4, 8, 16, 32, 64) if 0 < machine.gpus < gpus]
    enough = next((gpus for gpus in more if now.memory(config, gpus).total <= room), None)
    if enough:
        found.append(f"{enough} GPUs")
    return found
