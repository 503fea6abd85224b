"""Success of ManiSkill's scripted experts in this package, and the cost of physics and of pictures in each visual mode.

OMP_NUM_THREADS=1 LP_NUM_THREADS=0 python -m benchmarks.experiments.maniskill_expert
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.machine import this_machine
from simplevla.config import SuiteConfig
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.statistics import wilson
from simplevla.storage import write_atomically, write_json
from simplevla.suites.maniskill.environment import ManiskillEnvironment
from simplevla.suites.maniskill.simulation import CAMERAS, Simulation
from simplevla.suites.maniskill.suite import VISUALS
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "maniskill_expert"
PICTURES = 8
"""Observations that are timed."""
CHUNKS, CHUNK_LENGTH = 24, 5
"""Chunks that are timed, as long as the recipe's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=50, help="per task, from initial state 0 on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tasks, speed = run_experts(arguments.episodes)
    result = {
        "tasks": tasks,
        "env_steps_per_cpu_second": speed,
        "ms_per_observation": {mode: {str(size): picture_ms(mode, size) for size in (64, 128)} for mode in VISUALS},
        "env_steps_per_cpu_second_with_pictures": {mode: with_pictures(mode) for mode in VISUALS},
        "commit": commit(),
        "machine": this_machine(),
    }
    write_json(arguments.out / f"{NAME}.json", result)
    write_atomically(arguments.out / f"{NAME}.md", page(result).encode())
    print(page(result))


def run_experts(episodes: int) -> tuple[dict[str, Any], float]:
    """Task -> n, solved, 95 % interval and env steps to success; and env steps per CPU second without pictures."""
    suite = make_suite(SuiteConfig(name="maniskill", visuals="lite", image_size=16))
    environment = suite.make_environment()
    assert isinstance(environment, ManiskillEnvironment)
    expert = suite.make_expert(environment)
    assert expert is not None
    tasks, executed, seconds = {}, 0, 0.0
    for task in suite.tasks:
        steps, failed = [], []
        for state in range(episodes):
            environment.reset(task, state)
            expert.reset()
            assert environment.simulation is not None
            started = time.process_time()
            for step in range(1, task.horizon + 1):
                executed += 1
                if environment.simulation.step(expert.action()):
                    steps.append(step)
                    break
            else:
                failed.append(state)
            seconds += time.process_time() - started
        low, high = wilson(len(steps), episodes)
        tasks[task.name] = {
            "n": episodes,
            "solved": len(steps),
            "wilson": [low, high],
            "horizon": task.horizon,
            "median_steps": float(np.median(steps)),
            "most_steps": max(steps),
            "failed_states": failed,
        }
        print(task.name, tasks[task.name], flush=True)
    environment.close()
    return tasks, executed / seconds


def picture_ms(visuals: str, size: int) -> float:
    """CPU milliseconds of both cameras' pictures."""
    scene = Simulation("StackCube-v1", size, visuals)
    scene.reset(0)

    def look() -> None:
        scene.update_pictures()
        for camera in CAMERAS.values():
            scene.picture(camera)

    look()
    started = time.process_time()
    for _ in range(PICTURES):
        look()
    seconds = time.process_time() - started
    scene.close()
    return 1e3 * seconds / PICTURES


def with_pictures(visuals: str) -> float:
    """Env steps per CPU second in chunks, each followed by both cameras' pictures of 64 pixels."""
    suite = make_suite(SuiteConfig(name="maniskill", visuals=visuals, image_size=64))
    environment = suite.make_environment()
    environment.reset(suite.task("PushCube-v1"), 0)
    chunk = np.zeros((CHUNK_LENGTH, 7), np.float32)
    started = time.process_time()
    for _ in range(CHUNKS):
        assert environment.step_chunk(chunk).observation.images
    seconds = time.process_time() - started
    environment.close()
    return CHUNKS * CHUNK_LENGTH / seconds


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    tasks, pictures = result["tasks"], result["ms_per_observation"]
    solved, n = (sum(row[key] for row in tasks.values()) for key in ("solved", "n"))
    seen = result["env_steps_per_cpu_second_with_pictures"]
    faster = pictures["stock"]["64"] / pictures["lite"]["64"]
    lines = [
        "# ManiSkill's scripted experts, and what pictures cost",
        "",
        f"The scripted experts solve {solved} of {n} states, and pictures in `lite` take {faster:.1f} times less than in `stock`.",
        "",
        "| task | solved (95 % Wilson) | env steps: median, most | horizon |",
        "|---|---|---|---|",
    ]
    for name, row in tasks.items():
        low, high = (100 * bound for bound in row["wilson"])
        count = f"{row['solved']}/{row['n']} ({low:.1f} to {high:.1f} %)"
        lines.append(f"| {name} | {count} | {row['median_steps']:.0f}, {row['most_steps']} | {row['horizon']} |")
    lines += ["", "| CPU ms for both cameras | 64 px | 128 px |", "|---|---|---|"]
    lines += [f"| {mode} | {sizes['64']:.0f} | {sizes['128']:.0f} |" for mode, sizes in pictures.items()]
    lines += [
        "",
        f"- Without pictures: {result['env_steps_per_cpu_second']:.0f} env steps per CPU second, the expert's own work included.",
        f"- With pictures of 64 pixels after every {CHUNK_LENGTH} env steps: {seen['lite']:.0f} in `lite`, {seen['stock']:.0f} in `stock`.",
        f"- Command: `python -m benchmarks.experiments.{NAME}`. Machine: {result['machine']}. Commit {result['commit'][:12]}. Data: `{NAME}.json`.",
        "- Initial states 0 to 49 of each task, physics and drawing on the processor, one thread.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
