"""Plan of a recipe on a machine, before it is run: does it fit, and what would make it fit.

Seconds are given where all costs are measured: for the recipe tabletop_nano on two CPU cores (measured.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from simplevla import checked
from simplevla.checked import Above0, Count
from simplevla.config import RayConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.planning.cost import Actor, Counts, rollout_seconds
from simplevla.planning.footprint import rollout_footprint, update_footprint
from simplevla.planning.measured import measured, simulator_key
from simplevla.planning.memory import Memory, Sizes, bfloat16_copies, device_memory, sizes_of, stored_episodes
from simplevla.policies.base import Policy
from simplevla.policies.load import check_fits_suite
from simplevla.rollout.crew import worker_count
from simplevla.suites.registry import make_suite


@checked.dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to plan for; with `gpus` 0 a CPU machine."""

    gpus: Count
    memory_gb: Above0
    """Memory of each GPU, or of the host if there is none; GB of 1e9 bytes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy in a run of a recipe: what it needs, of which everything about a machine follows."""

    config: TrainConfig
    sizes: Sizes
    update_bytes: int
    """Footprint of a micro-batch."""
    batch_bytes: int
    """Footprint of a policy batch."""
    actor: Actor
    """Simulators beside each GPU, or of the host; the cores are those of the measured machine."""
    simulators: str
    """Settings that the simulators' costs depend on, as `simulator_key` names them."""
    longest: int
    """Decisions of an episode that lasts to the horizon."""

    def memory(self, gpus: int) -> Memory:
        """Memory of each GPU; without one of the host, which then holds simulators and episodes too."""
        memory = device_memory(self.sizes, self.config, gpus, self.update_bytes, self.batch_bytes)
        return memory if gpus else replace(memory, kept=memory.kept | self.host(gpus))

    def host(self, gpus: int) -> dict[str, int]:
        """Bytes on the host, beside those of a policy that computes there."""
        worker_mb, _ = self.worker_memory()
        found = {
            "stored episodes": stored_episodes(self.sizes, self.config, self.longest),
            "simulators": math.ceil(1e6 * worker_mb * self.actor.workers * max(1, gpus)),
        }
        copies = 2 if self.config.rollouts_ahead else 1
        return found | ({"the driver's policy": copies * self.sizes.weight_bytes} if gpus > 1 else {})

    def worker_memory(self) -> tuple[float, str]:
        """Memory of a simulator process in MB, whatever the image size, and the suite that it was measured on.

        It is the largest of all where this suite's wasn't measured."""
        known = measured().worker_mb
        same = [name for name in known if without_pixels(name) == without_pixels(self.simulators)]
        name = same[0] if same else max(known, key=lambda name: known[name])
        return known[name], name

    def fits(self, machine: Machine) -> bool:
        """True if the memory is enough."""
        return self.memory(machine.gpus).total <= 1e9 * machine.memory_gb

    def seconds(self) -> dict[str, float]:
        """Seconds of an update's parts on a CPU machine like the measured one; none if a part's cost isn't measured.

        The formula knows the numbers of episodes, workers and environments. All else that costs time must be as it was
        when the costs were measured."""
        known, config, plain = measured(), self.config, TrainConfig()
        as_measured = (
            (self.simulators, self.sizes.parameters) == (known.suite, known.parameters)
            and sum(self.sizes.trained) == self.sizes.parameters
            and (config.ray, config.rollouts_ahead) == (RayConfig(), False)
            and not (config.gradient_checkpointing or config.rollout.bfloat16 or config.rollout.compile)
            and (config.precision, config.optimizer.moments) == (plain.precision, plain.optimizer.moments)
            and (config.microbatch_decisions, config.minibatches) == (plain.microbatch_decisions, plain.minibatches)
        )
        if not as_measured:
            return {}
        trained = config.sampling.groups * config.sampling.group_size
        sampled = trained * (known.sampled_per_trained if config.sampling.dynamic else 1.0)
        counts = Counts(
            env_steps=sampled * known.env_steps,
            decisions=sampled * known.decisions,
            episodes=sampled,
            longest=self.longest,
        )
        return {
            "rollout": rollout_seconds(counts, known.simulator, known.policy, known.handling, self.actor),
            "training": known.update.constant + known.update.per_decision * trained * known.decisions,
        }


def without_pixels(simulators: str) -> str:
    """A key of `simulator_key` without the image size."""
    return simulators.rpartition(", ")[0]


def plan(config: TrainConfig, policy: Policy) -> Plan:
    """The plan for a policy on the meta device.

    Raises:
        UserError: the policy doesn't fit the suite, or a batch is too large to be made.
    """
    suite = make_suite(config.suite)
    check_fits_suite(policy, suite.spec)
    # Autocast does nothing without numbers: activations count as float32 ones, which is more than they take.
    policy.prepare_for_rl(replace(config, precision="float32"))
    instruction = max((task.instruction for task in suite.tasks), key=len)
    workers = worker_count(suite, config.rollout.workers)
    per_worker = 1 if suite.one_environment_per_process else config.rollout.slots_per_worker
    actor = Actor(cores=measured().cores, workers=workers, slots=workers * per_worker)
    height, _ = next(iter(suite.spec.cameras.values()))
    rows, checkpointing = config.microbatch_decisions, config.gradient_checkpointing
    copies = bfloat16_copies(policy) if config.precision == "bfloat16" else 0
    return Plan(
        config=config,
        sizes=sizes_of(policy, suite.spec),
        update_bytes=update_footprint(policy, suite.spec, instruction, rows, checkpointing) + copies,
        batch_bytes=rollout_footprint(policy, suite.spec, instruction, math.ceil(actor.rows)) + copies,
        actor=actor,
        simulators=simulator_key(config.suite, height),
        longest=math.ceil(max(task.horizon for task in suite.tasks) / policy.chunk_length),
    )


def remedies(now: Plan, make_policy: Callable[[int], Policy], adapter_rank: int, machine: Machine) -> list[str]:
    """Changes, each of which alone would make the recipe fit.

    Args:
        make_policy: gives the policy with an adapter of a rank, 0 for none.
        adapter_rank: the rank that was planned with.
    """
    config, found = now.config, []

    def fits(changed: TrainConfig, rank: int) -> bool:
        try:
            return plan(changed, make_policy(rank)).fits(machine)
        except UserError:
            # This policy can't be changed so: it has no checkpointing, or no adapters.
            return False

    small = replace(config, microbatch_decisions=1)
    if replace(now, update_bytes=0).fits(machine):
        if fits(small, adapter_rank):
            found.append("smaller micro-batches (--microbatch-decisions 1, or a few)")
        elif not config.gradient_checkpointing and fits(replace(small, gradient_checkpointing=True), adapter_rank):
            found.append("smaller micro-batches (--gradient-checkpointing --microbatch-decisions 1, or a few)")
    if replace(now, config=replace(config, optimizer=replace(config.optimizer, moments="8bit"))).fits(machine):
        found.append("8-bit moments (--optimizer.moments 8bit)")
    if not adapter_rank and fits(config, 32):
        found.append("an adapter of rank 32 (--adapter-rank 32)")
    # Of several GPUs each has a learner, which has no frozen_backbone.
    more = (gpus for gpus in (2, 4, 8, 16, 32, 64) if 0 < machine.gpus < gpus and not config.denoising.frozen_backbone)
    enough = next((gpus for gpus in more if now.fits(replace(machine, gpus=gpus))), None)
    return [*found, f"{enough} GPUs"] if enough else found
