"""Curves in Weights & Biases (offline) and Trackio (its database on this machine), read back as they wrote them."""

import json
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import trackio
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackio.sqlite_storage import SQLiteStorage
from wandb.proto import wandb_internal_pb2

import made_dataset
from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla.adapters.config import ContinualConfig
from simplevla.config import (
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrackerName,
    TrainConfig,
)
from simplevla.errors import UserError
from simplevla.evaluation.result import EvaluationResult, Outcome
from simplevla.training import continual, imitation, loop, tracking
from simplevla.training.runlog import read_rows
from simplevla.training.tracking import PROJECT, Tracker


class Tracked(NamedTuple):
    """All that a tracker has of a run."""

    config: dict[str, Any]
    points: dict[str, list[tuple[int, float]]]
    """Curve -> (x, y) in the order of arrival."""
    ends: list[str]


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of a file of Weights & Biases: LevelDB's log format after a header of seven bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def wandb_s(called: str, run: Path) -> Tracked:
    config: dict[str, Any] = {}
    points: dict[str, list[tuple[int, float]]] = {}
    ends = []
    # Its service writes in the background until it is told to end.
    wandb.teardown()
    for file in sorted(run.glob(f"wandb/offline-run-*-{called}/*.wandb")):
        for record in records(file):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for name, value in row.items():
                if name != "update" and not name.startswith("_"):
                    points.setdefault(name, []).append((row["update"], value))
            if record.WhichOneof("record_type") == "exit":
                ends.append("failed" if record.exit.exit_code else "finished")
    return Tracked(config, points, ends)


def trackio_s(called: str, run: Path) -> Tracked:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs(PROJECT, called):
        for name, value in row.items():
            if "/" in name:
                points.setdefault(name, []).append((row["step"], value))
    config = SQLiteStorage.get_run_config(PROJECT, called) or {}
    alerts = SQLiteStorage.get_alerts(PROJECT, called)
    return Tracked(config, points, [alert["title"].split()[-1] for alert in reversed(alerts)])


READ = {"wandb": wandb_s, "trackio": trackio_s}
TRACKERS: list[TrackerName] = ["wandb", "trackio"]


def tracked(name: str, run: Path) -> Tracked:
    return READ[name](json.loads((run / "tracker.json").read_text())[name], run)


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for module in [m for n, m in sys.modules.items() if n.startswith("trackio") and hasattr(m, "TRACKIO_DIR")]:
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    yield
    trackio.finish() if trackio.context_vars.current_run.get() else None


def config(tmp_path: Path, name: TrackerName | None, updates: int = 2) -> TrainConfig:
    FakePolicy().save(tmp_path / "start")
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach", "near")),
        policy=str(tmp_path / "start"),
        updates=updates,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4),
        optimizer=OptimizerConfig(lr=0.01),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=2,
        eval_episodes_per_task=2,
        tracker=name,
    )


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_and_its_continuation_are_one_run_in_the_tracker(name: TrackerName, tmp_path: Path) -> None:
    settings, run = config(tmp_path, name), tmp_path / "run"
    loop.train(settings, run)
    loop.train(replace(settings, updates=3), run, resume=True)
    found, rows = tracked(name, run), read_rows(run)
    assert found.config["sampling"]["group_size"] == 4
    assert found.points["update/approx_kl"] == [(row["update"], row["approx_kl"]) for row in rows if row["update"]]
    assert found.points["eval_by_task/near"] == [
        (row["update"], row["eval_by_task"]["near"][0] / row["eval_by_task"]["near"][1])
        for row in rows
        if "eval_by_task" in row
    ]
    assert [x for x, _ in found.points["sampling/train_success"]] == [1, 2, 3]
    assert found.ends == ["finished", "finished"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_fails_says_so_there(name: TrackerName, tmp_path: Path) -> None:
    def fail() -> None:
        with Tracker(name, tmp_path, {"seed": 1}, "update") as tracker:
            tracker.log({"update/loss": 0.5}, 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    found = tracked(name, tmp_path)
    assert found.ends == ["failed"]
    assert found.points == {"update/loss": [(1, 0.5)]}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_one_error_before_the_training(
    name: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"isn't installed: pip install 'simplevla\[{name}\]'"):
        loop.train(config(tmp_path, name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_refuses_to_begin_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(UserError, match=r"tracker 'wandb' doesn't begin: no API key configured\. Log in there"):
        loop.train(config(tmp_path, "wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_later_doesn_t_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []

    class Broken:
        def __init__(self, *_: object) -> None: ...

        def log(self, values: dict[str, float], step: int) -> None:
            logged.append(step)
            if step == 1:
                raise ConnectionError("gone")

        def finish(self, failed: bool) -> None:
            raise AssertionError

    monkeypatch.setitem(tracking.PAGES, "wandb", Broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = loop.train(config(tmp_path, "wandb"), tmp_path / "run")
    said = [str(warning.message) for warning in caught if "tracker" in str(warning.message)]
    assert said == ["the tracker 'wandb' failed (gone); the run goes on without it"]
    assert (outcome.reason, logged) == ("finished", [0, 1])
    assert [row["update"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]


class Listed:
    """A page that keeps what it is told."""

    pages: ClassVar[list["Listed"]] = []

    def __init__(self, called: str, run: Path, config: dict[str, Any], axis: str) -> None:
        self.axis, self.logged = axis, list[tuple[int, dict[str, float]]]()
        self.pages.append(self)

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, failed: bool) -> None:
        self.logged.append((-1, {"failed": failed}))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Listed]:
    monkeypatch.setitem(tracking.PAGES, "wandb", Listed)
    monkeypatch.setattr(Listed, "pages", [])
    return Listed.pages


def test_imitation_is_tracked(tmp_path: Path, pages: list[Listed]) -> None:
    made_dataset.write(tmp_path / "demos")
    settings = SFTConfig(dataset=str(tmp_path / "demos"), batches=1, batch_size=2, chunk_length=2, tracker="wandb")
    imitation.sft(settings, tmp_path / "sft")
    (page,) = pages
    assert page.axis == "batch"
    assert set(page.logged[0][1]) == {"sft/loss", "sft/grad_norm", "sft/batches_per_s", "sft/lr"}
    assert page.logged[-1] == (-1, {"failed": False})


def test_the_matrix_of_continual_training_is_tracked(tmp_path: Path, pages: list[Listed]) -> None:
    settings = ContinualConfig(train=config(tmp_path, "wandb"), tasks=("near",))
    outcomes = [Outcome(task="near", initial_state=state, success=state > 0, env_steps=1) for state in range(4)]
    result = EvaluationResult(
        suite="fake",
        split="test",
        protocol={},
        versions={},
        commit="",
        horizons={"near": 9},
        greedy=True,
        temperature=None,
        seed=0,
        episodes=tuple(outcomes),
        wall_s=1.0,
    )
    for number in range(2):
        continual._record(settings, tmp_path, number, result)
    assert [page.logged[0] for page in pages] == [
        (0, {"held_out_by_task/near": 0.75}),
        (1, {"held_out_by_task/near": 0.75}),
    ]
    assert [row["tasks_trained"] for row in read_rows(tmp_path)] == [0, 1]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("held_out_by_task/near")
    assert [event.step for event in events] == [0, 1]


def test_without_a_tracker_there_is_none(tmp_path: Path) -> None:
    with Tracker(None, tmp_path, {}, "update") as tracker:
        tracker.log({"update/loss": 0.5}, 1)
    assert list(tmp_path.iterdir()) == []
