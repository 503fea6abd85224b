"""The campaign of benchmarks/experiments/reliability.py, cut short: real processes that are killed, and then go on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.experiments.reliability_commands import Case, Commands, remove
from benchmarks.experiments.reliability_kills import finish, reference
from benchmarks.experiments.reliability_tally import Tally
from simplevla import cli
from small_tinyvla import for_fake_suite

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Case:
    policy = tmp_path_factory.mktemp("base") / "policy"
    for_fake_suite(["reach", "far"]).save(policy)
    flags = ["--suite.name", "fake_suite:make", "--suite.tasks", "reach", "far", "--updates", "2", "--eval-every", "0"]
    flags += ["--sampling.groups", "2", "--sampling.group-size", "4", "--minibatches", "1", "--optimizer.lr", "1e-5"]
    flags += ["--rollout.workers", "1", "--rollout.slots-per-worker", "4"]
    return Case("train", ("train", "--policy", str(policy), *flags))


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    with Commands(tmp_path) as commands:
        yield commands


def test_kills_before_file_operations_change_nothing_and_leave_nothing(
    train: Case, commands: Commands, tmp_path: Path
) -> None:
    folder, tally = tmp_path / "runs" / "run", Tally()
    folder.parent.mkdir()
    straight = reference(commands, train, folder)
    assert 20 < straight.before_checkpoint < straight.operations
    for number in (4, straight.before_checkpoint - 1, straight.operations):
        remove(folder)
        killed = commands.run(train.command(folder), under=str(folder), kill_at=number)
        assert (killed.code, tally.look_at(killed)) == (-9, [])
        tally.add("kill", finish(commands, train, folder, straight.end, tally))
    assert (tally.tried, tally.survived, tally.failures) == (3, 3, [])


def test_the_benchmarks_run_in_the_process_that_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    become: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: become.append((path, arguments)))
    monkeypatch.chdir(tmp_path)
    cli.main(["bench", "--only", "rollout"])
    assert become == [(sys.executable, [sys.executable, "-m", "benchmarks.speed.bench", "--only", "rollout"])]
    # The package is found there.
    assert Path.cwd() == Path(__file__).parents[2]
