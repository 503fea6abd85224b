"""Environments that break, and policies that answer with NaN, seen from the command line: nothing of it is a result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import point_suite
from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla import cli
from simplevla.training import loop

WORKERS = ["--rollout.workers", "1", "--rollout.slots-per-worker", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_SUITE_FOLDER", str(tmp_path))
    monkeypatch.setattr("simplevla.evaluation.evaluate.load_policy", load_fake_policy)
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    FakePolicy().save(tmp_path / "policy")
    return tmp_path


def evaluate(folder: Path, *tasks: str) -> int:
    flags = ["--policy", str(folder / "policy"), "--out", str(folder / "out.json"), *WORKERS]
    return cli.main(["eval", *flags, "--suite.name", "fake_suite:make", "--suite.tasks", *tasks])


def test_eval_of_which_every_episode_broke_says_what_broke_and_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, "crash", "kill") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the environment broke each of the 4 episodes")
    # Two test states per task, three runs of each.
    assert "environment raised RuntimeError (6 times, last: RuntimeError: the gripper fell off)" in last
    assert "worker died (exit code 9) (6 times)" in last
    assert not (folder / "out.json").exists()


def test_eval_without_any_valid_episode_of_a_task_is_no_success(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, "reach", "crash") == 1
    out = capsys.readouterr().out
    assert "environment raised RuntimeError (6 times, last: RuntimeError: the gripper fell off)" in out
    assert "crash, initial state 5: RuntimeError: the gripper fell off" in out
    assert "no valid episode of crash: the overall rate is without them" in out
    written = json.loads((folder / "out.json").read_text())
    assert written["errors"]["environment raised RuntimeError"]["count"] == 6
    reason = "RuntimeError: the gripper fell off"
    assert written["broken"] == [{"task": "crash", "initial_state": state, "reason": reason} for state in (4, 5)]


def test_eval_says_what_broke_though_it_went_well_in_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "reach", "kill_once") == 0
    out = capsys.readouterr().out
    assert "the environment broke: worker died (exit code 9) (1 time)" in out
    assert "episodes given up: 0" in out
    assert json.loads((folder / "out.json").read_text())["overall"]["n"] == 4
    (folder / "out.json").unlink()
    assert evaluate(folder, "reach", "kill_once") == 0
    assert "broke" not in capsys.readouterr().out


def test_a_run_logs_what_broke_in_it(folder: Path) -> None:
    flags = ["--policy", str(folder / "policy"), "--run", str(folder / "run"), *WORKERS]
    flags += ["--suite.name", "fake_suite:make", "--suite.tasks", "reach", "crash_once", "--updates", "2"]
    flags += ["--minibatches", "1", "--sampling.groups", "2", "--sampling.group-size", "4", "--optimizer.lr", "0.01"]
    assert cli.main(["train", *flags, "--eval-every", "0"]) == 0
    first, second = (json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines())
    assert first["errors"] == {"environment raised RuntimeError": 1}
    lines = first["last_error"].splitlines()
    assert lines[-1] == "RuntimeError: the gripper fell off"
    assert "fake_suite.py" in first["last_error"]
    assert len(lines) <= 4
    assert (first["retries"], first["env_errors"]) == (1, 0)
    assert "errors" not in second
    assert "last_error" not in second


@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_policy_that_answers_with_nan_is_an_error(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its actions are finite: the bin of the largest of NaN logits is some bin."""

    def load(path: Path, device: str = "cpu") -> FakePolicy:
        policy = load_fake_policy(path)
        with torch.no_grad():
            policy.linear.bias[3] = float("nan")
        return policy

    monkeypatch.setattr("simplevla.evaluation.evaluate.load_policy", load)
    monkeypatch.setattr(loop, "load_policy", load)
    suite = ["--policy", str(folder / "policy"), "--suite.name", "fake_suite:make", "--suite.tasks", "near", *WORKERS]
    rest = ["--out", str(folder / "out.json")] if command == "eval" else ["--run", str(folder / "run")]
    rest += [] if command == "eval" else ["--optimizer.lr", "0.01", "--eval-every", "0"]
    assert cli.main([command, *suite, *rest]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the policy's log-probabilities are NaN or infinite in task 'near', initial state" in last
    assert not (folder / "out.json").exists()


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (
            "raise near any",
            "5 of 5 attempts at task 'near' broke in their environment, each 3 times: environment or exp",
        ),
        ("yes near 0", "suite 'point', task 'near', initial state 0, run: success is 'yes' of type str"),
    ],
)
def test_demos_that_cannot_go_on_say_so_in_one_line(
    breaking: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POINT_BREAK", breaking)
    flags = ["--suite.tasks", "near", "--episodes", "4", "--workers", "1", "--out", str(folder / "data")]
    assert cli.main(["demos", point_suite.NAME, *flags]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folder / "data").exists()


DEMOS = """
import signal
from simplevla.config import DemosConfig, SuiteConfig
from simplevla.demonstrations.generate import generate

# A shell that runs this in the background has Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
generate(DemosConfig(suite=SuiteConfig(name="point_suite:make", tasks=("near",)), episodes=50, workers=2), "data")
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")
def test_ctrl_c_ends_demonstrations_that_hang_at_once_and_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINT_BREAK", "hang near any")
    monkeypatch.setenv("POINT_LOG", str(folder / "log"))
    (folder / "program.py").write_text(DEMOS)
    # In a session of its own, whose whole process group gets the Ctrl-C as in a terminal.
    program = subprocess.Popen(
        [sys.executable, "program.py"], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "log").exists() or (folder / "log").read_text().count("near") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    started = time.monotonic()
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert time.monotonic() - started < 20
    # One traceback, the program's own: workers don't see the Ctrl-C.
    assert (errors.count("KeyboardInterrupt"), errors.count("Traceback")) == (1, 1)
    deadline = time.monotonic() + 30
    while session(program.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session(program.pid) == []
    assert not (folder / "data").exists()


def session(leader: int) -> list[int]:
    """Processes of a session that aren't gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found
