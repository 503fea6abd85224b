"""What LIBERO's stepping mode `fast` changes: `python -m benchmarks.speed.libero_stepping`. Writes docs/results/libero_stepping.*

The scripted expert solves the same initial states in both modes; the actions that it took in stock stepping are then executed
in `fast`, without looking, to see how far the two motions part.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks.support.machine import this_machine
from simplevla.config import SuiteConfig
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.statistics import wilson
from simplevla.storage import write_atomically, write_json
from simplevla.suites.base import Expert
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.registry import make_suite
from simplevla.types import Task

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--episodes", type=int, default=10, help="per task, from initial state 0 on")
    arguments = parser.parse_args()

    suites = {
        mode: make_suite(SuiteConfig(name=arguments.suite, visuals="lite", image_size=16, stepping=mode))
        for mode in ("stock", "fast")
    }
    environments = {mode: suite.make_environment() for mode, suite in suites.items()}
    experts = {mode: suites[mode].make_expert(environments[mode]) for mode in suites}
    solved = dict.fromkeys(suites, 0)
    seconds, steps = dict.fromkeys(suites, 0.0), dict.fromkeys(suites, 0)
    agree, apart = 0, []
    episodes = [(task, state) for task in suites["stock"].tasks for state in range(arguments.episodes)]
    for task, state in track(episodes, description="episodes"):
        outcome = {}
        for mode, environment in environments.items():
            started = time.process_time()
            outcome[mode], actions, path = demonstrate(environment, experts[mode], task, state)
            seconds[mode] += time.process_time() - started
            steps[mode] += len(actions)
            solved[mode] += outcome[mode]
            if mode == "stock":
                stock_actions, stock_path = actions, path
        agree += outcome["stock"] == outcome["fast"]
        apart.append(np.linalg.norm(replay(environments["fast"], task, state, stock_actions) - stock_path, axis=1))
    n = len(episodes)
    result = {
        "suite": arguments.suite,
        "n": n,
        "solved": solved,
        "wilson": {mode: wilson(count, n) for mode, count in solved.items()},
        "same_outcome": agree,
        "env_steps_per_cpu_second": {mode: steps[mode] / seconds[mode] for mode in suites},
        "hand_apart_mm": {
            "mean": 1e3 * float(np.mean(np.concatenate(apart))),
            "median_of_the_largest": 1e3 * float(np.median([one.max() for one in apart])),
            "largest": 1e3 * float(max(one.max() for one in apart)),
            "after_50_env_steps_mean": 1e3 * float(np.mean([one[49] for one in apart if len(one) >= 50])),
        },
        "commit": commit(),
        "machine": this_machine(),
    }
    write_json(RESULTS / "libero_stepping.json", result)
    write_atomically(RESULTS / "libero_stepping.md", page(result).encode())
    print(page(result))


def demonstrate(
    environment: LiberoEnvironment, expert: Expert, task: Task, state: int
) -> tuple[bool, np.ndarray, np.ndarray]:
    """(solved, actions [T, 7], hand positions after each [T, 3], m)."""
    environment.reset(task, state)
    expert.reset()
    actions, path, solved = [], [], False
    while not solved and len(actions) < task.horizon:
        actions.append(expert.action())
        solved = environment.simulation.step(actions[-1])
        path.append(environment.simulation.hand_position)
    return solved, np.array(actions), np.array(path)


def replay(environment: LiberoEnvironment, task: Task, state: int, actions: np.ndarray) -> np.ndarray:
    """Hand positions [T, 3], m."""
    environment.reset(task, state)
    path = []
    for action in actions:
        environment.simulation.step(action)
        path.append(environment.simulation.hand_position)
    return np.array(path)


def page(result: dict) -> str:
    apart, rows = result["hand_apart_mm"], []
    for mode in ("stock", "fast"):
        low, high = (100 * bound for bound in result["wilson"][mode])
        speed = result["env_steps_per_cpu_second"][mode]
        rows.append(f"| {mode} | {result['solved'][mode]}/{result['n']} ({low:.1f} to {high:.1f} %) | {speed:.0f} |")
    speeds = result["env_steps_per_cpu_second"]
    faster = speeds["fast"] / speeds["stock"]
    return f"""# LIBERO's stepping modes

Stepping `fast` executes {faster:.2f} times as many env steps per CPU second as stock, and {result["same_outcome"]} of {result["n"]} episodes end alike.

| stepping | expert's success (95 % Wilson) | env steps per CPU second, no pictures |
|---|---|---|
{chr(10).join(rows)}

**How far the motions part.** The expert's actions of stock stepping are executed in `fast` without looking.
The hands are {apart["mean"]:.3f} mm apart on average over all env steps, and {apart["after_50_env_steps_mean"]:.3f} mm after 50 of them.
The largest distance in an episode has a median of {apart["median_of_the_largest"]:.3f} mm and is {apart["largest"]:.1f} mm at most.
Contact amplifies small differences: a grasp may slip in one mode and not in the other. So outcomes are compared too.

- Command: `python -m benchmarks.speed.libero_stepping`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `libero_stepping.json`.
- {result["suite"]}, all tasks, the scripted expert from initial states 0 to {result["n"] // 10 - 1} of each.
"""


if __name__ == "__main__":
    main()
