"""run.log in a run's folder: what was said, from the start to the end, and nothing where there is no run."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla import record
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.record import begin_records, recorded
from simplevla.terminal import Console
from simplevla.training import loop
from simplevla.training.loop import train


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    FakePolicy().save(tmp_path / "start")
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach",)),
        policy=str(tmp_path / "start"),
        updates=2,
        sampling=SamplingConfig(groups=2, group_size=4),
        optimizer=OptimizerConfig(lr=0.01),
        minibatches=1,
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=0,
    )


def lines(folder: Path) -> list[str]:
    """Those of the log, without their times, which each of them has."""
    found = []
    for line in (folder / "run.log").read_text().splitlines():
        if line:
            stamped = re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)", line)
            assert stamped is not None, line
            found.append(stamped[1])
    return found


def test_a_run_and_what_it_goes_on_with(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/simplevla", "train", "--run", "my run"])
    train(config, tmp_path / "run")
    said = lines(tmp_path / "run")
    assert said[0] == "started: simplevla train --run 'my run'"
    assert [line[:8] for line in said if line.startswith("update ")] == ["update 1", "update 2"]
    assert said[-2].startswith("2 updates done")
    assert said[-1].startswith("ended after 0.")
    train(replace(config, updates=3), tmp_path / "run", resume=True)
    more = lines(tmp_path / "run")
    assert more[: len(said)] == said
    assert more[len(said)].startswith("started: ")
    assert [line[:8] for line in more[len(said) :] if line.startswith("update ")] == ["update 3"]


def test_warnings_log_lines_and_errors_are_in_it(tmp_path: Path) -> None:
    def work() -> None:
        with recorded(tmp_path):
            Console(force_terminal=True).print("a title in\x1b[31m red", style="red")
            begin_records()
            warnings.warn("it was warm", stacklevel=1)
            logging.getLogger("simplevla.rollout.crew").warning("a worker %s", "died")
            raise UserError("no such thing")

    with pytest.warns(UserWarning, match="it was warm"), pytest.raises(UserError, match="no such thing"):
        work()
    assert lines(tmp_path)[1:-1] == [
        "a title in?[31m red",
        "warning: it was warm",
        "a worker died",
        "error: no such thing",
    ]
    assert record._records == []
    assert not logging.getLogger("simplevla").handlers


def test_what_is_logged_is_still_seen_where_nobody_set_logging_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (tmp_path / "inner").mkdir()
    with recorded(tmp_path), recorded(tmp_path / "inner"):
        begin_records()
        logging.getLogger("simplevla.rollout.crew").warning("a worker died")
    assert capsys.readouterr().err == "a worker died\n"


def test_an_interruption_and_a_fault_are_in_it(tmp_path: Path) -> None:
    def work(error: BaseException) -> None:
        with recorded(tmp_path):
            begin_records()
            raise error

    for error, said in ((KeyboardInterrupt(), "interrupted"), (ZeroDivisionError("by none"), "ZeroDivisionError")):
        with pytest.raises(type(error)):
            work(error)
        assert said in (tmp_path / "run.log").read_text()


TERMINATED = """
import signal, sys
from pathlib import Path
from simplevla.record import begin_records, recorded

try:
    with recorded(Path(sys.argv[1])), recorded(Path(sys.argv[1]) / "inner"):
        begin_records()
        signal.raise_signal(signal.SIGTERM)
finally:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def test_sigterm_ends_a_run_with_a_closing_line(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    # In a process of its own: without the mend the signal ends it, and Ray leaves a handler in one that has started it.
    ended = subprocess.run([sys.executable, "-c", TERMINATED, str(tmp_path)], check=False)
    assert ended.returncode == 143
    for folder in (tmp_path, tmp_path / "inner"):
        assert lines(folder)[1:-1] == ["terminated by SIGTERM"]
        assert lines(folder)[-1].startswith("ended after")


def test_a_handler_of_sigterm_that_is_there_stays(tmp_path: Path) -> None:
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with recorded(tmp_path):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_a_refused_resume_adds_nothing(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "run.log").read_bytes()
    with pytest.raises(UserError, match="was started with another config"):
        train(replace(config, seed=5), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.log").read_bytes() == before


def test_a_start_that_fails_leaves_none(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUITE_BUILD", "raise")
    with pytest.raises(UserError, match="no display"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_costs_the_log_and_not_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        if data.startswith(b"20"):
            written.append(data)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(record.os, "write", full)
    with pytest.warns(
        UserWarning, match=r"run.log can't be written \(No space left on device\): the run goes on"
    ) as seen:
        assert train(config, tmp_path / "run").update == 2
    assert len([one for one in seen if "run.log" in str(one.message)]) == 1
    assert len(written) == 2
    assert len(lines(tmp_path / "run")) == 1


def test_a_write_that_is_cut_short_is_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.warns(UserWarning, match="no space left"), recorded(tmp_path):
        begin_records()


def test_a_torn_line_of_a_killed_run_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("2026-01-01 00:00:00  update 7  tra")
    with recorded(tmp_path):
        begin_records()
    assert lines(tmp_path)[0] == "update 7  tra"
    assert lines(tmp_path)[1].startswith("started: ")


def test_a_run_within_another_is_in_both(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with recorded(tmp_path):
        begin_records()
        Console().print("outer alone")
        with recorded(tmp_path / "inner"):
            begin_records()
            Console().print("both")
        Console().print("outer again")
    assert [line for line in lines(tmp_path / "inner") if not line.startswith(("started", "ended"))] == ["both"]
    assert [line for line in lines(tmp_path) if not line.startswith(("started", "ended"))] == [
        "outer alone",
        "both",
        "outer again",
    ]
