"""Rollouts with workers in an interpreter of their own beside local ones: `python -m benchmarks.speed.own_interpreter`, about ten minutes.

Makes virtual environments with NumPy and MuJoCo alone: two of pyenv's Python 3.10, and one of the Python that runs this. All
kinds of workers roll the same episodes out, in turn, from a nano with random weights, which hardly ends an episode early.
Writes docs/results/own_interpreter.json and .md.
"""

import importlib.metadata
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.speed.rollout_benchmarks import TABLETOP_ROLLOUT, roll_out
from benchmarks.support.half_trained import requests
from benchmarks.support.interpreters import find_python, make_interpreter
from benchmarks.support.machine import this_machine
from benchmarks.support.quiet import process_seconds
from simplevla.config import SuiteConfig
from simplevla.evaluation.provenance import commit
from simplevla.policies.base import Policy
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.recipes import tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.types import Episode

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PACKAGES = [f"{name}=={importlib.metadata.version(name)}" for name in ("mujoco", "numpy")]
NUMPY = {1: "numpy<2", 2: "numpy"}
"""Of Python 3.10: the newest of each."""


def nano() -> Policy:
    """A nano of the recipe's chunks, with random weights."""
    suite, config = make_suite(tabletop.SUITE), tabletop.sft()
    width = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    statistics = [
        {name: [value] * len(names) for name, value in width.items()}
        for names in (suite.spec.state_names, suite.spec.action_names)
    ]
    return TinyVLA.create(
        "nano",
        cameras=list(suite.spec.cameras),
        state_dim=len(suite.spec.state_names),
        action_dim=len(suite.spec.action_names),
        chunk_length=config.chunk_length,
        instructions=[task.instruction for task in suite.tasks],
        statistics=Statistics(state=statistics[0], action=statistics[1]),
    )


def same(some: list[Episode], others: list[Episode]) -> bool:
    """True if they are the same to the last bit."""
    return all(
        a.request == b.request
        and a.status is b.status
        and all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("state", "trace", "executed"))
        and all(a.images[camera].tobytes() == b.images[camera].tobytes() for camera in a.images)
        for a, b in zip(some, others, strict=True)
    )


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(median, its 95 % bootstrap interval over rounds)."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def main(rounds: int = 40, groups: int = 4) -> None:
    """Measures and writes the page.

    Args:
        rounds: in each of which all kinds roll out once, in random order.
        groups: of eight episodes, in each of these rollouts.
    """
    policy, random = nano(), np.random.default_rng(0)
    seconds, cpu, finished = {}, {}, {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        old, new = find_python("3.10"), Path(getattr(sys, "_base_executable", sys.executable))
        assert old is not None, "pyenv has no Python 3.10: pyenv install 3.10"
        version = platform.python_version()
        kinds = {
            "local": None,
            f"own Python {version}": make_interpreter(new, folder / "new", *PACKAGES),
            **{
                f"own Python 3.10, NumPy {number}": make_interpreter(old, folder / f"old{number}", wanted, PACKAGES[0])
                for number, wanted in NUMPY.items()
            },
        }
        suites: dict[str, SuiteConfig] = {kind: replace(tabletop.SUITE, python=path) for kind, path in kinds.items()}
        engines = {
            kind: stack.enter_context(RolloutEngine(suite, TABLETOP_ROLLOUT, policy.chunk_length))
            for kind, suite in suites.items()
        }
        for number in range(-1, rounds):
            for kind in random.permutation(list(kinds)).tolist():
                before = process_seconds(own=True) + process_seconds(own=False)
                started = time.perf_counter()
                finished[kind] = roll_out(engines[kind], policy, requests(tabletop.SUITE, groups, seed=number + 1))
                if number >= 0:
                    steps = sum(episode.env_steps for episode in finished[kind])
                    seconds.setdefault(kind, []).append((time.perf_counter() - started) / steps)
                    spent = process_seconds(own=True) + process_seconds(own=False) - before
                    cpu.setdefault(kind, []).append(spent / steps)
            assert all(same(finished["local"], finished[kind]) for kind in kinds), "the same episodes"
    result = {
        "kinds": {
            kind: {
                "env_steps_per_s": float(1 / np.median(seconds[kind])),
                "ratio": interval([a / b for a, b in zip(seconds["local"], seconds[kind], strict=True)]),
                "cpu_ratio": interval([a / b for a, b in zip(cpu["local"], cpu[kind], strict=True)]),
            }
            for kind in kinds
        },
        "rounds": rounds,
        "groups": groups,
        "episodes": 8 * groups * rounds,
        "packages": PACKAGES,
        "commit": commit(),
        "machine": this_machine(),
    }
    write_json(RESULTS / "own_interpreter.json", result)
    write_atomically(RESULTS / "own_interpreter.md", page(result).encode())
    print(page(result))


def page(result: dict) -> str:
    rows = []
    for kind, found in result["kinds"].items():
        ratios = [
            f"{100 * m:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            for m, low, high in (found["ratio"], found["cpu_ratio"])
        ]
        rows.append(f"| {kind} | {found['env_steps_per_s']:.0f} | {' | '.join(ratios)} |")
    _, new, one, two = (100 * found["ratio"][0] for found in result["kinds"].values())
    return f"""# Workers in their own interpreter

Workers in an interpreter of the same version roll out at {new:.1f} % of the speed of local ones, and in Python 3.10 at {two:.1f} % (NumPy 1: {one:.1f} %), the same episodes to the last bit.

| workers | env steps/s | speed, % of local | env steps per CPU second, % of local |
|---|---|---|---|
{chr(10).join(rows)}

- Command: `python -m benchmarks.speed.own_interpreter --rounds {result["rounds"]} --groups {result["groups"]}`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `own_interpreter.json`.
- `tabletop`, nano with random weights, {result["episodes"]} episodes of each kind in {result["rounds"]} rounds. In a round all kinds roll the same episodes out, one after another in random order.
- Percentages are medians over rounds of a round's ratio, with a 95 % bootstrap interval. CPU time is of the policy's process and all workers.
- {", ".join(result["packages"])}; Python 3.10 has the newest NumPy 1 and NumPy 2 that there are for it.
"""


if __name__ == "__main__":
    tyro.cli(main)
