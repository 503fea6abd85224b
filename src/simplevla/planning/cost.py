"""Seconds of a rollout and an update, from parts measured one by one; docs/performance.md explains the formula."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SimulatorCost:
    """Costs of one environment, seconds of one core."""

    step: float
    """An env step without pictures."""
    observe: float
    """All cameras and the state, once per decision."""
    reset: float
    """A reset without its observation."""


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """Cost of one policy batch of B rows, seconds: `batch + row * B`."""

    batch: float
    row: float


@dataclass(frozen=True, kw_only=True)
class Handling:
    """Cost of one decision beside simulator and policy, seconds: copies, messages, checks, bookkeeping."""

    policy: float
    """Seconds in the policy's process."""
    worker: float
    """Seconds in the worker process."""


@dataclass(frozen=True, kw_only=True)
class UpdateCost:
    """Cost of an update of D decisions on one device, seconds: `constant + per_decision * D`.

    Only decisions that train count: nothing is padded."""

    constant: float
    per_decision: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of env steps, decisions and episodes in a rollout."""

    env_steps: float
    decisions: float
    episodes: float
    longest: float = 0.0
    """Decisions of the longest episode."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Cores, worker processes and environments of a rollout; the policy's process has the same cores."""

    cores: int
    workers: int
    slots: int
    """Environments, in all of its workers."""

    @property
    def rows(self) -> float:
        """Rows of a usual policy batch: half of the slots act at a time."""
        return max(1.0, self.slots / 2)

    @property
    def active_workers(self) -> float:
        """Workers that a half's turn keeps busy."""
        return min(self.workers, self.rows)


def rollout_parts(
    counts: Counts, simulator: SimulatorCost, policy: PolicyCost, handling: Handling, actor: Actor
) -> dict[str, float]:
    """Wall time of a rollout if one thing alone held it up; the largest decides.

    `simulators`: the workers, each at most one core; `policy`: its process does one thing at a time; `turns`: an
    episode's decisions follow one another, so that each slot does its share of them in a row, and somebody the longest
    episode; `cores`: all that cores do, shared out fairly.
    """
    decisions = counts.decisions
    simulation = (
        counts.env_steps * simulator.step
        + decisions * (simulator.observe + handling.worker)
        + counts.episodes * simulator.reset
    )
    inference = decisions * (policy.row + policy.batch / actor.rows + handling.policy)
    turn = simulation / decisions + policy.batch + policy.row * actor.rows
    alone = simulation / decisions + policy.batch + policy.row
    return {
        "simulators": simulation / min(actor.workers, actor.cores),
        "policy": inference,
        "turns": max(decisions / actor.slots * turn, counts.longest * alone),
        "cores": shared_seconds(simulation, inference, actor.cores, actor.active_workers),
    }


def rollout_seconds(
    counts: Counts, simulator: SimulatorCost, policy: PolicyCost, handling: Handling, actor: Actor
) -> float:
    """Wall time of a rollout: the largest of `rollout_parts`."""
    return max(rollout_parts(counts, simulator, policy, handling, actor).values())


def shared_seconds(simulation: float, inference: float, cores: int, workers: float) -> float:
    """Wall time of both sides on the same cores, which the system shares out fairly among processes.

    The policy's one process gets `cores / (workers + 1)` of a core while the workers run. If they end first, it is
    alone, and the other cores idle until it has given them new actions: that is what more workers than cores cost.
    """
    share = min(1.0, cores / (workers + 1))
    simulated = min(workers, cores - share)
    together = min(inference / share, simulation / simulated)
    return together + max(
        (simulation - simulated * together) / min(workers, cores),
        inference - share * together,
    )
