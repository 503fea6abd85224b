"""Costs measured on two CPU cores, on which plans rest: measured.json, which benchmarks/speed/scaling.py writes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from simplevla.config import SuiteConfig
from simplevla.planning.cost import Handling, PolicyCost, SimulatorCost, UpdateCost
from simplevla.storage import read_as

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Costs of the recipe tabletop_nano on `machine`, at `commit`, in seconds of one core; memory of other suites."""

    commit: str
    machine: str
    cores: int
    suite: str
    """Suite of the costs, as `simulator_key` names it."""
    parameters: int
    """Number of the policy's parameters, by which a plan knows that it is the measured one."""
    simulator: SimulatorCost
    policy: PolicyCost
    handling: Handling
    update: UpdateCost
    """Update, on all cores together."""
    env_steps: float
    """Mean env steps of a sampled episode."""
    decisions: float
    """Mean decisions of a sampled episode."""
    sampled_per_trained: float
    """Episodes sampled per episode that trains."""
    worker_mb: dict[str, float]
    """Memory of a worker process, by `simulator_key`, with as many environments as the recipe gives it."""


@cache
def measured() -> Measured:
    """The content of measured.json."""
    return read_as(FILE, Measured)


def simulator_key(suite: SuiteConfig, image_size: int) -> str:
    """Settings that change what simulation costs: `LIBERO stock, stock stepping, 256 px`; the task set doesn't."""
    if suite.name.startswith("libero_"):
        return f"LIBERO {suite.visuals or 'stock'}, {suite.stepping or 'stock'} stepping, {image_size} px"
    if suite.name == "metaworld":
        return f"Meta-World {suite.visuals or 'stock'}, {image_size} px"
    return f"{suite.name}, {image_size} px"
