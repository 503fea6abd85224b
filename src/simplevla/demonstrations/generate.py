"""Generates a dataset of expert demonstrations in parallel; the result depends on the settings, not on the workers."""

import contextlib
import heapq
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from simplevla.config import DemosConfig, to_dict
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.expert import Attempt, run_attempt, start_process
from simplevla.demonstrations.writer import DatasetWriter, DemonstrationEpisode, changed
from simplevla.policies.normalization import Statistics
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite

MIN_ATTEMPTS, MIN_SUCCESS = 20, 0.2
"""A task whose expert solves less than this share of at least that many attempts ends the generation."""


def generate(config: DemosConfig, folder: Path | str, progress: bool = True) -> Statistics:
    """Write `config.episodes` successful demonstrations to `folder` as a LeRobotDataset v3.0 and return its statistics.

    Interrupted, it continues when called again with the same settings; finished, it only says so. With `progress`, a
    bar and the expert's success per task are printed.

    Raises:
        ValueError: no expert, no train states, an expert that hardly ever succeeds, or a folder with other content.
        RuntimeError: a worker or its simulator crashed; what is finished is kept.
        OSError: no space or no permission; what is finished is kept.
    """
    folder = Path(folder)
    console = Console(quiet=not progress)
    suite = make_suite(config.suite)
    about = _about(config, suite)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        return _finished(folder, about, console)
    schedule = Schedule(suite)
    tally = Tally([task.name for task in suite.tasks])
    with DatasetWriter(folder, suite.spec, [task.instruction for task in suite.tasks], about) as writer:
        for row in writer.episodes:
            tally.count(row["task_name"], solved=1, attempted=row["attempts"])
        resumed = writer.next_episode
        if resumed:
            console.print(f"continuing {writer.partial} after {resumed} episodes", soft_wrap=True)
        with _bar(console) as bar:
            started = time.monotonic()
            shown = bar.add_task("demonstrations", total=config.episodes, completed=resumed, expert="-", rate=0.0)

            def show() -> None:
                solved = sum(tally.solved.values())
                rate = (solved - resumed) / (time.monotonic() - started)
                bar.update(shown, completed=solved, expert=tally.overall(), rate=rate)

            with contextlib.closing(_episodes(config, schedule, resumed, tally, show)) as episodes:
                for episode in episodes:
                    writer.add(episode)
        statistics = writer.finish()
        frames = writer.episodes[-1]["dataset_to_index"]
    console.print(f"{folder}: {config.episodes} episodes, {frames} frames", soft_wrap=True)
    console.print(f"expert success: {tally}", soft_wrap=True)
    return statistics


class Schedule:
    """Which task and initial state each attempt uses: tasks in turn, then each task's train states in turn.

    Raises:
        ValueError: a task has no train states.
    """

    def __init__(self, suite: Suite) -> None:
        self.tasks = suite.tasks
        self.states = [suite.initial_states(task, "train") for task in suite.tasks]
        for task, states in zip(self.tasks, self.states, strict=True):
            if not states:
                raise ValueError(f"task {task.name!r} of suite {suite.name!r} has no train initial states")

    def attempt(self, episode: int, number: int) -> Attempt:
        """Attempt `number` at demonstration `episode`; each further attempt moves on to the next initial state."""
        task = episode % len(self.tasks)
        states = self.states[task]
        state = states[(episode // len(self.tasks) + number) % len(states)]
        return Attempt(episode=episode, number=number, task=self.tasks[task], initial_state=state)


class Tally:
    """The expert's solved and attempted episodes per task."""

    def __init__(self, tasks: list[str]) -> None:
        self.solved = dict.fromkeys(tasks, 0)
        self.attempted = dict.fromkeys(tasks, 0)

    def count(self, task: str, *, solved: int, attempted: int = 1) -> None:
        self.solved[task] += solved
        self.attempted[task] += attempted

    def overall(self) -> str:
        return f"{sum(self.solved.values())}/{sum(self.attempted.values())}"

    def __str__(self) -> str:
        return ", ".join(f"{task} {self.solved[task]}/{n}" for task, n in self.attempted.items())

    def check(self, task: str, config: DemosConfig) -> None:
        """Raise ValueError if `task` fails too often to go on."""
        solved, attempted = self.solved[task], self.attempted[task]
        if attempted >= MIN_ATTEMPTS and solved < MIN_SUCCESS * attempted:
            raise ValueError(
                f"the expert solved {solved} of {attempted} attempts at task {task!r}; expected at least "
                f"{MIN_SUCCESS:.0%} (all tasks: {self}). Lower demos.noise (now {config.noise}) or "
                f"demos.noise_probability (now {config.noise_probability}), or leave the task out with suite.tasks"
            )


def _episodes(
    config: DemosConfig, schedule: Schedule, start: int, tally: Tally, show: Callable[[], None]
) -> Generator[DemonstrationEpisode, None, None]:
    """Successful episodes number `start` and up, in order, from as many processes as configured."""
    queue = [(episode, 0) for episode in range(start, config.episodes)]
    running: dict[Future[DemonstrationEpisode | None], Attempt] = {}
    ready: dict[int, DemonstrationEpisode] = {}
    workers = min(config.workers or len(os.sched_getaffinity(0)), max(1, len(queue)))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_process)
    try:
        while queue or running:
            while queue and len(running) < 2 * workers:
                attempt = schedule.attempt(*heapq.heappop(queue))
                running[pool.submit(run_attempt, config, attempt)] = attempt
            done = wait(running, return_when=FIRST_COMPLETED).done
            # By episode, so that a crash loses no earlier episode that is done as well.
            for future in sorted(done, key=lambda future: running[future].episode):
                attempt = running.pop(future)
                episode = _result(future, attempt)
                tally.count(attempt.task.name, solved=episode is not None)
                if episode is None:
                    tally.check(attempt.task.name, config)
                    heapq.heappush(queue, (attempt.episode, attempt.number + 1))
                else:
                    ready[attempt.episode] = episode
                show()
                while start in ready:
                    yield ready.pop(start)
                    start += 1
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[DemonstrationEpisode | None], attempt: Attempt) -> DemonstrationEpisode | None:
    """What the worker returned; its crash becomes an error that says where."""
    where = f"in task {attempt.task.name!r}, initial state {attempt.initial_state}"
    remedy = "finished files are kept: give the same command again to continue"
    try:
        return future.result()
    except (ValueError, ImportError):
        raise
    except BrokenProcessPool as error:
        raise RuntimeError(f"a worker process died {where} (killed, or out of memory?); {remedy}") from error
    except Exception as error:
        raise RuntimeError(f"the environment or its expert failed {where}: {error!r}; {remedy}") from error


def _about(config: DemosConfig, suite: Suite) -> dict[str, Any]:
    """What decides the dataset's content; the number of workers doesn't."""
    demos = to_dict(config)
    del demos["workers"]
    about = {"suite": suite.name, "protocol": dict(suite.protocol), "demos": demos}
    # Through JSON, since this is compared with what info.json holds.
    return dict(json.loads(json.dumps(about)))


def _finished(folder: Path, about: dict[str, Any], console: Console) -> Statistics:
    """The statistics of the dataset that is already in `folder`, if it is the one asked for."""
    if not (folder / "meta").is_dir():
        raise ValueError(f"{folder} exists and is no dataset; choose another folder")
    dataset = LeRobotDataset(folder)
    differences = changed(dataset.origin, about) if dataset.origin else ["it was not generated here"]
    if differences:
        raise ValueError(
            f"{folder} already holds another dataset ({'; '.join(differences)}); choose another folder or delete it"
        )
    console.print(f"{folder} is finished already: {dataset.num_episodes} episodes, {dataset.num_frames} frames")
    return dataset.statistics


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed:.0f}/{task.total:.0f}, {task.fields[rate]:.1f}/s, expert solved {task.fields[expert]}"
        ),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )
