"""Success of Meta-World's scripted experts behind our suite, all 50 tasks, and what pictures cost in each visual mode.

OMP_NUM_THREADS=1 LP_NUM_THREADS=0 python -m benchmarks.experiments.metaworld_expert
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.support.machine import this_machine
from simplevla.config import SuiteConfig
from simplevla.evaluation.provenance import commit, versions
from simplevla.evaluation.statistics import wilson
from simplevla.storage import write_atomically, write_json
from simplevla.suites.metaworld.camera import CAMERAS, VISUALS
from simplevla.suites.metaworld.catalog import HORIZONS
from simplevla.suites.metaworld.environment import MetaworldEnvironment
from simplevla.suites.registry import make_suite
from simplevla.types import Task

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PICTURES = {"stock": 5, "fast": 40, "lite": 40}
"""Visual mode -> observations that are timed."""
SOURCES = 2
"""Initial states whose actions are repeated, without looking, from the others."""


def main() -> None:
    """Run the episodes, time the pictures, write metaworld_expert.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10, help="episodes per task, from initial state 0 on")
    parser.add_argument("--noise", type=float, default=0.0, help="std of the disturbance of an action, 0 to 2")
    parser.add_argument("--noise-probability", type=float, default=0.1, help="how often an action is disturbed")
    arguments = parser.parse_args()

    tasks, speed = run_experts(arguments.episodes, arguments.noise, arguments.noise_probability)
    result = {
        "command": f"python -m benchmarks.experiments.metaworld_expert --episodes {arguments.episodes} --noise {arguments.noise:g} "
        f"--noise-probability {arguments.noise_probability:g}",
        "horizon": HORIZONS["metaworld"][0],
        "tasks": tasks,
        "all": {
            "n": len(tasks) * arguments.episodes,
            **{name: summary(tasks, arguments.episodes, steps) for name, (steps, _) in HORIZONS.items()},
        },
        "env_steps_per_cpu_second": speed,
        "ms_per_observation": {mode: {str(size): picture_ms(mode, size) for size in (64, 128)} for mode in VISUALS},
        "commit": commit(),
        "versions": versions(),
        "machine": this_machine(),
    }
    write_json(RESULTS / "metaworld_expert.json", result)
    write_atomically(RESULTS / "metaworld_expert.md", page(result).encode())
    print(page(result))


def run_experts(episodes: int, noise: float, probability: float) -> tuple[dict[str, dict], float]:
    """Task -> env steps to success and states that failed; and env steps per CPU second without pictures, resets included."""
    suite = make_suite(SuiteConfig(name="metaworld", horizon_protocol="metaworld"))
    environment = suite.make_environment()
    assert isinstance(environment, MetaworldEnvironment)
    expert = suite.make_expert(environment)
    assert expert is not None
    tasks, executed, seconds = {}, 0, 0.0
    for number, task in enumerate(suite.tasks):
        environment.place(task, 0)
        started = time.process_time()
        lengths, failed, actions = [], [], {}
        for state in range(episodes):
            rng = np.random.default_rng((number, state))
            simulation = environment.place(task, state)
            expert.reset()
            actions[state] = []
            for step in range(1, task.horizon + 1):
                action = expert.action()
                if noise and rng.random() < probability:
                    action[:3] = np.clip(action[:3] + noise * rng.standard_normal(3), -1, 1)
                executed += 1
                actions[state].append(action)
                if simulation.step(action):
                    lengths.append(step)
                    break
            else:
                failed.append(state)
        seconds += time.process_time() - started
        replays = [
            replayed(environment, task, state, actions[source])
            for source in range(SOURCES)
            for state in range(SOURCES, episodes)
        ]
        tasks[task.name] = {
            "instruction": task.instruction,
            "env_steps": lengths,
            "failed_states": failed,
            "replays": len(replays),
            "replays_solved": sum(replays),
        }
        print(f"{task.name}: {len(lengths)}/{episodes}", flush=True)
    environment.close()
    return tasks, executed / seconds


def replayed(environment: MetaworldEnvironment, task: Task, state: int, actions: list[np.ndarray]) -> bool:
    """Whether actions that were taken from another layout solve this one: then the task needs no eyes."""
    simulation = environment.place(task, state)
    return any(simulation.step(action) for action in actions)


def summary(tasks: dict[str, dict], episodes: int, horizon: int) -> dict[str, float | list[float]]:
    """Success within `horizon` env steps, over all tasks."""
    solved = sum(length <= horizon for task in tasks.values() for length in task["env_steps"])
    return {"solved": solved, "wilson": list(wilson(solved, episodes * len(tasks)))}


def picture_ms(visuals: str, size: int) -> float:
    """CPU time of one observation of both cameras at `size` pixels, median."""
    suite = make_suite(SuiteConfig(name="metaworld", visuals=visuals, image_size=size))
    environment = suite.make_environment()
    environment.reset(suite.task("drawer-open-v3"), 0)
    times = []
    for _ in range(PICTURES[visuals]):
        started = time.process_time()
        result = environment.step_chunk(np.zeros((1, 4), np.float32))
        assert len(result.observation.images) == len(CAMERAS)
        times.append(time.process_time() - started)
    environment.close()
    return 1e3 * float(np.median(times))


def page(result: dict) -> str:
    n, rows = result["all"]["n"], []
    per_task = n // len(result["tasks"])
    for name, task in result["tasks"].items():
        lengths, failed = task["env_steps"], ", ".join(map(str, task["failed_states"]))
        low, high = (100 * bound for bound in wilson(len(lengths), per_task))
        spread = f"{np.mean(lengths):.0f} ({min(lengths)} to {max(lengths)})" if lengths else "-"
        rows.append(
            f"| {name} | {task['instruction']} | {len(lengths)}/{per_task} ({low:.0f} to {high:.0f} %) | {spread} | {failed} | "
            f"{task['replays_solved']}/{task['replays']} |"
        )
    overall = []
    for name, (steps, _) in HORIZONS.items():
        solved, (low, high) = result["all"][name]["solved"], result["all"][name]["wilson"]
        overall.append(f"| {name}, {steps} | {solved}/{n} | {solved / n:.1%} ({low:.1%} to {high:.1%}) |")
    ms, whole = result["ms_per_observation"], result["all"]["metaworld"]
    pictures = [f"| {mode} | {sizes['64']:.1f} | {sizes['128']:.1f} |" for mode, sizes in ms.items()]
    return f"""# Meta-World's scripted experts, and what pictures cost

Meta-World's own scripted policies solve {whole["solved"]} of {n} episodes within {result["horizon"]} env steps, and an observation with `lite` visuals takes {ms["lite"]["64"]:.1f} ms instead of {ms["stock"]["64"]:.1f} ms.

| horizon protocol, env steps | solved | rate |
|---|---|---|
{chr(10).join(overall)}

Without pictures, resets and expert included: {result["env_steps_per_cpu_second"]:.0f} env steps per CPU second.

CPU milliseconds (median) of one env step and the observation after it, with both cameras:

| visuals | 64 px | 128 px |
|---|---|---|
{chr(10).join(pictures)}

Success within {result["horizon"]} env steps, and env steps to success: mean (least to most). *Blind* repeats the actions from the first {SOURCES} initial
states from the others, without looking. Where that solves many, a policy that ignores its images can look good.

| task | instruction | solved | env steps | failed from states | blind |
|---|---|---|---|---|---|
{chr(10).join(rows)}

- Command: `{result["command"]}`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `metaworld_expert.json`.
- metaworld {result["versions"].get("metaworld", "?")}, mujoco {result["versions"]["mujoco"]}. The scripted policies run as our `Expert`, from initial states 0 to {per_task - 1} (train) of each task.
- Brackets are 95 % Wilson intervals.
"""


if __name__ == "__main__":
    main()
