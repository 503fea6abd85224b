"""Costs measured on two CPU cores, on which plans rest: measured.json, which benchmarks/scaling.py writes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from simplevla.config import SuiteConfig
from simplevla.planning.cost import Handling, PolicyCost, SimulatorCost, UpdateCost
from simplevla.storage import read_json

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of one core of `machine`, at `commit`."""

    commit: str
    machine: str
    cores: int
    simulators: dict[str, SimulatorCost]
    """Costs of simulators, by `simulator_key`."""
    worker_mb: dict[str, float]
    """Memory of a worker process, by `simulator_key`, with as many environments as the recipe gives it."""
    nano: PolicyCost
    """The nano policy with a token head, images of 64 pixels."""
    handling: Handling
    update: UpdateCost
    """Update of the nano policy, on all cores together."""
    episodes: dict[str, list[tuple[int, int]]]
    """(env steps, decisions) of sampled episodes, by suite."""
    sampled_per_trained: float
    """Episodes sampled per episode that trains, in the recipe tabletop_nano, halfway."""


@cache
def measured() -> Measured:
    """The content of measured.json."""
    values = read_json(FILE)
    return Measured(
        commit=values["commit"],
        machine=values["machine"],
        cores=values["cores"],
        simulators={key: SimulatorCost(**cost) for key, cost in values["simulators"].items()},
        worker_mb=values["worker_mb"],
        nano=PolicyCost(**values["nano"]),
        handling=Handling(**values["handling"]),
        update=UpdateCost(**values["update"]),
        episodes={key: [(steps, decisions) for steps, decisions in rows] for key, rows in values["episodes"].items()},
        sampled_per_trained=values["sampled_per_trained"],
    )


def simulator_key(suite: SuiteConfig, image_size: int) -> str:
    """Settings that change what simulation costs: `LIBERO stock, stock stepping, 256 px`; the task set doesn't."""
    if suite.name.startswith("libero_"):
        return f"LIBERO {suite.visuals or 'stock'}, {suite.stepping or 'stock'} stepping, {image_size} px"
    if suite.name == "metaworld":
        return f"Meta-World {suite.visuals or 'stock'}, {image_size} px"
    return f"{suite.name}, {image_size} px"
