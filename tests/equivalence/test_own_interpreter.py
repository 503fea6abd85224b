"""Suites in an interpreter of their own: Python 3.10 with NumPy 1 alone gives what workers of this interpreter give."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import point_suite
from benchmarks.support.interpreters import find_python, make_interpreter
from fake_policy import FakePolicy
from simplevla.config import DemosConfig, EvalConfig, RolloutConfig, SuiteConfig
from simplevla.demonstrations.generate import generate
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluate_with
from simplevla.novelty.replay import Replay, replayed
from simplevla.policies.base import Sampling
from simplevla.rollout.scheduler import RolloutEngine, RolloutStats
from simplevla.rollout.workers import SuiteError
from simplevla.suites import elsewhere
from simplevla.suites.checker import check_suite
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest

SOURCE = Path(__file__).parents[2] / "src"
WORKERS_SIDE = ("checked", "config", "errors", "types", "suites.elsewhere", "suites.gymnasium", "rollout.workers")
JOBS = ("demonstrations.expert", "novelty.replay")
ONE = RolloutConfig(workers=1, slots_per_worker=4)
FAKE = SuiteConfig(name="fake_suite:make")


@pytest.fixture(scope="module")
def bare() -> Path:
    """Python 3.10 without any package."""
    found = find_python("3.10")
    if found is None:
        pytest.skip("needs pyenv's Python 3.10 (docs/tests.md)")
    return found


@pytest.fixture(scope="module")
def python(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with NumPy 1, as the planners of some simulators want it, and one that knows nothing of NumPy 2."""
    return make_interpreter(bare, tmp_path_factory.mktemp("own") / "venv", "numpy<1.26")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_SUITE_FOLDER", str(tmp_path))
    return tmp_path


def roll_out(suite: SuiteConfig, config: RolloutConfig, count: int = 24) -> tuple[list[Episode], RolloutStats]:
    tasks = make_suite(suite).tasks
    queue = iter(
        EpisodeRequest(task=tasks[i % len(tasks)], initial_state=i % 4, seed=(5, i), group=i) for i in range(count)
    )
    finished: list[Episode] = []
    with RolloutEngine(suite, config, 4) as engine:
        engine.run(FakePolicy(), Sampling(temperature=1.6), lambda: next(queue, None), finished.append)
    return finished, engine.stats


def assert_bit_identical(ours: list[Episode], theirs: list[Episode]) -> None:
    for first, second in zip(ours, theirs, strict=True):
        assert (first.request, first.status, first.env_steps) == (second.request, second.status, second.env_steps)
        arrays = [
            (getattr(first, n), getattr(second, n)) for n in ("state", "trace", "logprobs", "executed", "actions")
        ]
        for a, b in [*arrays, *((first.images[camera], second.images[camera]) for camera in first.images)]:
            assert a.tobytes() == b.tobytes()


def test_the_workers_side_needs_numpy_alone(python: str) -> None:
    names = [f"simplevla.{name}" for name in (*WORKERS_SIDE, *JOBS)]
    code = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
before = set(sys.modules)
for name in {names}: __import__(name)
added = {{name.split(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
print(*(name for name in added if "cython" not in name and name != "__mp_main__"))
import pathlib
for path in pathlib.Path({str(SOURCE)!r}, "simplevla", "suites").rglob("*.py"):
    compile(path.read_text(), str(path), "exec")
"""
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert (done.stderr, set(done.stdout.split())) == ("", {"numpy", "simplevla"})


def test_episodes_are_the_local_ones_bit_for_bit(python: str) -> None:
    two = replace(ONE, workers=2)
    assert_bit_identical(roll_out(FAKE, two)[0], roll_out(replace(FAKE, python=python), two)[0])


@pytest.mark.parametrize(
    ("task", "kind", "config"),
    [
        ("kill_once", "worker died (exit code 9)", ONE),
        ("hang_once", "worker silent for 3 s", replace(ONE, chunk_timeout_s=3.0)),
    ],
)
def test_a_lost_worker_is_replaced_and_no_episode_differs(
    task: str, kind: str, config: RolloutConfig, python: str, folder: Path
) -> None:
    suite = replace(FAKE, tasks=(task, "reach"), python=python)
    broken, stats = roll_out(suite, config, 8)
    assert (stats.worker_restarts, stats.env_errors, stats.errors.counts) == (1, 0, {kind: 1})
    # With the file in the folder nothing goes wrong any more.
    calm, _ = roll_out(replace(suite, python=None), config, 8)
    for episodes in (broken, calm):
        episodes.sort(key=lambda episode: episode.request.group)
    for first, second in zip(broken, calm, strict=True):
        assert first.status is second.status
        np.testing.assert_array_equal(first.trace, second.trace)


def test_demonstrations_replays_evaluations_and_checks_are_the_local_ones(python: str, tmp_path: Path) -> None:
    found = []
    for number, interpreter in enumerate((None, python)):
        points = SuiteConfig(name=point_suite.NAME, tasks=("near", "flaky"), python=interpreter)
        generate(DemosConfig(suite=points, episodes=4, workers=1), tmp_path / str(number), progress=False)
        files = [path for path in sorted((tmp_path / str(number)).rglob("*")) if path.is_file()]
        suite = make_suite(points)
        replay = Replay(task=suite.tasks[0], initial_state=1, actions=np.ones((3, 3), np.float32), film=True)
        [(_, track)] = replayed(points, suite, RolloutConfig(workers=1), [replay])
        fake = make_suite(replace(FAKE, python=interpreter))
        with RolloutEngine(replace(FAKE, python=interpreter), ONE, 4) as engine:
            result = evaluate_with(engine, FakePolicy(), fake, EvalConfig(episodes_per_task=1))
        found.append(
            {
                "files": [path.read_bytes() for path in files],
                "track": (track.states.tobytes(), [picture.tobytes() for picture in track.pictures]),
                "by_task": result.by_task,
                "problems": check_suite(fake),
            }
        )
    assert len(found[0]["files"]) > 4
    assert len(found[0]["problems"]) > 0, "its pictures are of one colour"
    assert found[0] == found[1]


def test_an_environment_there_is_watched(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUITE_EVENTS", "")
    environment = make_suite(replace(FAKE, python=python)).make_environment()
    assert environment.events() is None
    environment.watch()
    assert environment.events() == ("is watched",)
    environment.close()


def test_an_environment_there_tells_of_its_errors_and_its_death(python: str) -> None:
    suite = make_suite(replace(FAKE, tasks=("crash", "kill"), python=python))
    environment = suite.make_environment()
    environment.reset(suite.tasks[0], 0)
    with pytest.raises(RuntimeError, match="RuntimeError: the gripper fell off") as raised:
        environment.step_chunk(np.zeros((1, 2), np.float32))
    assert "fake_suite.py" in raised.value.__notes__[0]
    environment.close()
    environment = suite.make_environment()
    environment.reset(suite.tasks[1], 0)
    with pytest.raises(RuntimeError, match=r"the process of suite\.python .* died \(exit code 9\)"):
        environment.step_chunk(np.zeros((1, 2), np.float32))
    environment.close()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("interpreter", "suite", "message"),
    [
        (lambda bare, own, folder: folder / "nothing", FAKE, "can't be started on .*No such file or directory"),
        (lambda bare, own, folder: script(folder / "x", "echo no >&2"), FAKE, "isn't a Python: it said 'no'"),
        (lambda bare, own, folder: script(folder / "x", "echo 3 9"), FAKE, "is Python 3.9; expected 3.10 or newer"),
        (lambda bare, own, folder: bare, FAKE, "can't import NumPy: ModuleNotFoundError: No module named 'numpy'"),
        (lambda bare, own, folder: own, SuiteConfig(), r"needs the module 'mujoco'.* -m pip install NAME \(in suite"),
        (lambda bare, own, folder: own, SuiteConfig(name="maniskill"), "needs the module 'mani_skill'"),
        (
            lambda bare, own, folder: own,
            SuiteConfig(name="no_file:make"),
            r"No module named 'no_file'.*on PYTHONPATH\?",
        ),
        (lambda bare, own, folder: own, replace(FAKE, tasks=("rech",)), r"no task 'rech'.*\(in suite.python"),
    ],
)
def test_an_interpreter_that_cannot_run_the_suite_is_one_error_and_leaves_nothing(
    interpreter: Callable, suite: SuiteConfig, message: str, bare: Path, python: str, tmp_path: Path
) -> None:
    suite = replace(suite, python=interpreter(bare, python, tmp_path))
    with pytest.raises(UserError, match=message) as raised:
        generate(DemosConfig(suite=suite, episodes=1), tmp_path / "data")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("data*"))


def test_packages_of_the_trainers_path_stay_out(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('another Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # Its module is found all the same, since this process finds it.
    assert make_suite(replace(FAKE, tasks=("far",), python=python)).tasks[0].instruction == "do far"


@pytest.mark.parametrize("name", ["spec", "tasks"])
def test_a_suite_that_is_another_in_the_workers_is_said(
    name: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = replace(FAKE, tasks=("reach",), python=python)
    told = elsewhere.describe(suite)
    other = {"spec": replace(told.spec, control_hz=20.0), "tasks": (replace(told.tasks[0], horizon=12),)}
    monkeypatch.setattr(elsewhere, "describe", lambda config: replace(told, **{name: other[name]}))
    monkeypatch.setattr("simplevla.rollout.workers.describe", elsewhere.describe)
    with pytest.raises(SuiteError, match=f"the {name} of suite 'fake'.*the one that asked"):
        RolloutEngine(suite, ONE, 4)
    with pytest.raises(UserError, match=f"the {name} of suite 'fake': .*the one that asked was told"):
        make_suite(suite).make_environment()
