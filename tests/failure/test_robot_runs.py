"""Commands on a robot, from a terminal at which a person answers: what is kept when an episode or all of it breaks."""

import fcntl
import json
import os
import pty
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import arm_suite
from at_terminal import Person
from simplevla import cli
from simplevla.policies.tinyvla.policy import TinyVLA
from small_tinyvla import plain_statistics

BEGIN, JUDGE = "Enter begins", "Solved?"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robot") / "policy"
    TinyVLA.create(
        "nano",
        cameras=("front",),
        state_dim=2,
        action_dim=2,
        chunk_length=3,
        instructions=["reach the block"],
        statistics=plain_statistics(2, 2),
    ).save(folder)
    return folder


class Command(Person):
    """A `simplevla` command at its terminal."""

    def ends(self) -> int:
        """Its exit code."""
        self.sees_the_end()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    pid: int


@contextmanager
def command(*arguments: str, terminal: bool = True) -> Iterator[Command]:
    """Forks a process, which leads a session whose terminal is the person's, unless it gives it up."""
    pid, ours = pty.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            # As at a terminal: a job in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # in the place of pytest's
            if not terminal:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                fcntl.ioctl(0, termios.TIOCNOTTY)
            code = cli.main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    person = Command(ours)
    person.pid = pid
    try:
        yield person
    finally:
        os.close(ours)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARM_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def evaluation(policy: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("eval", "--policy", str(policy), "--suite.name", "arm_suite:make", "--out", str(out), *more)


def lines(log: Path, word: str) -> int:
    return sum(line.startswith(word) for line in log.read_text().splitlines())


def test_an_evaluation_counts_what_a_person_judged_and_asks_for_the_rest_again(
    policy: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In scene 5: the first has six actions, and the stopped one is held by one.
    monkeypatch.setenv("ARM_LOST", str(arm_suite.HORIZON + 3))
    with command(*evaluation(policy, tmp_path / "result.json")) as person:
        person.answers(
            *(("Set scene 3. ", ""), (BEGIN, "\r"), (JUDGE, "y")),
            *(("Set scene 4. ", ""), (BEGIN, "\rx"), ("stopped; it doesn't count", "")),
            *(("Set scene 4 again", ""), (BEGIN, "\rf"), ("failed after 0 env steps", "")),
            *(("Set scene 5. ", ""), (BEGIN, "\r"), ("(ConnectionError: no answer from motor 1). Mend it", "\r")),
            *(("Set scene 5 again", ""), (BEGIN, "\r"), (JUDGE, "n")),
        )
        assert person.ends() == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(e["initial_state"], e["success"]) for e in result["episodes"]] == [(3, True), (4, False), (5, False)]
    lost = "the robot failed: ConnectionError: no answer from motor 1"
    assert {kind: error["count"] for kind, error in result["errors"].items()} == {"stopped": 1, lost: 1}
    assert result["broken"] == []
    assert (lines(log, "connect"), log.read_text().splitlines()[-1]) == (2, "disconnect")


def test_what_was_judged_is_kept_when_the_person_ends_it(
    policy: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARM_LOST", str(arm_suite.HORIZON + 3))
    # People take longer than a simulator that hangs.
    patience = ("--rollout.chunk-timeout-s", "1.5")
    with command(*evaluation(policy, tmp_path / "result.json", *patience)) as person:
        person.sees(BEGIN)
        time.sleep(2.5)
        person.presses("\r")
        person.answers((JUDGE, "y"), (BEGIN, "\r"), ("Mend it", "q"))
        assert person.ends() == 0
        assert person.local_flags & termios.ICANON
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(e["initial_state"], e["success"]) for e in result["episodes"]] == [(3, True)]
    assert sum(error["count"] for error in result["errors"].values()) == 2, "no worker was silent"
    assert [(e["initial_state"], e["reason"]) for e in result["broken"]] == [
        (state, "ended at the terminal (q)") for state in (4, 5)
    ]


def test_ctrl_c_at_a_question_disconnects_the_robot_and_ends_the_command(
    policy: Path, log: Path, tmp_path: Path
) -> None:
    with command(*evaluation(policy, tmp_path / "result.json")) as person:
        person.answers((BEGIN, "\x03"), ("interrupted", ""))
        assert person.ends() == cli.EXIT_INTERRUPTED
        assert person.local_flags & termios.ICANON
    assert log.read_text().splitlines()[-1] == "disconnect"


def test_an_update_of_two_groups_of_two(policy: Path, log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--sampling.groups", "2", "--sampling.group-size", "2", "--updates", "1", "--eval-every", "0")
    with command(
        *("train", "--policy", str(policy), "--run", str(run), "--suite.name", "arm_suite:make"),
        *(*flags, "--minibatches", "1", "--optimizer.lr", "1e-5"),
    ) as person:
        for verdict, set_again in (("y", False), ("n", True), ("n", False), ("y", True)):
            person.answers((" again. " if set_again else "Set scene ", ""), (BEGIN, "\r"), (JUDGE, verdict))
        assert person.ends() == 0
    (row,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert (row["episodes"], row["groups_kept"], row["train_success"]) == (4, 2, 0.5)
    assert row["unlike_starts"] == 0
    assert lines(log, "send") == 4 * arm_suite.HORIZON


@pytest.mark.parametrize(
    ("terminal", "more", "said"),
    [
        (False, (), "can't build environments: /dev/tty can't be opened"),
        (True, ("--rollout.workers", "2"), "2 workers are asked for, and suite 'arm' has one robot"),
    ],
)
def test_one_robot_and_one_terminal_are_needed(
    policy: Path, tmp_path: Path, terminal: bool, more: tuple[str, ...], said: str
) -> None:
    with command(*evaluation(policy, tmp_path / "result.json", *more), terminal=terminal) as person:
        assert person.ends() == cli.EXIT_ERROR
    text = " ".join(person.read.split())
    assert said in text
    assert "Traceback" not in text
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("own", [(), ("--suite.python", sys.executable)])
def test_a_check_that_the_person_ends_is_one_line(own: tuple[str, ...], log: Path) -> None:
    with command("check-suite", "arm_suite:make", *own) as person:
        person.answers(("Set scene", ""), (BEGIN, "q"))
        assert person.ends() == 2
    assert "error: arm_suite:make isn't checked to the end: " in person.read
    assert "Traceback" not in person.read
    assert log.read_text().splitlines()[-1] == "disconnect"
