"""The commands that the campaign breaks, made small, and how their ends are compared."""

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASK = "press_button"
"""A task of the embedded suite that 200 batches of imitation half solve."""
LONGEST_S = 240.0
"""A command that lasts longer hangs."""
GONE_S = 5.0
"""Time that workers have to be gone once their parent is."""
TRACEBACK = re.compile(r"^Traceback \(most recent call last\)|^Exception in thread", re.MULTILINE)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
BY_THE_CLOCK = re.compile(r".*_s$|.*_per_s$|minutes.*|metrics_bytes|commit|policy$|adapter_bytes")
"""Keys of JSON files that two equal runs may differ in."""
UNCOMPARED = ("tensorboard/", "run.log", "environment.json", "manifest.json", ".html", ".lock", ".tmp", "stages.json")


@dataclass(frozen=True)
class Case:
    """A command that leaves a folder."""

    name: str
    arguments: tuple[str, ...]
    """Those of a new run, but for the folder."""
    flag: str = "--run"
    """Names the folder."""
    resumes: bool = True
    """A run that has begun goes on with --resume; otherwise with the same command."""
    order: dict[str, Any] = field(default_factory=dict)
    """More for `reliability_fork.py`."""
    file: str = ""
    """In the folder, which the flag names instead."""

    def command(self, folder: Path) -> list[str]:
        """The arguments with which somebody would start it, or go on with what is there."""
        if self.resumes and (folder / "config.json").exists():
            return [self.name, "--resume", str(folder), "--trust-suite"]
        return [*self.arguments, self.flag, str(folder / self.file)]


def cases(policy: Path, dataset: Path) -> list[Case]:
    """One of each command that writes a run folder or a dataset."""
    workers = ["--rollout.workers", "1", "--rollout.slots-per-worker", "8"]
    sampling = ["--sampling.groups", "2", "--sampling.group-size", "4", "--sampling.max-oversampling", "8"]
    rl = [*workers, *sampling, "--updates", "2", "--minibatches", "2", "--eval-every", "1"]
    rl += ["--eval-episodes-per-task", "2", "--optimizer.lr", "1e-5"]
    imitation = ["--batches", "6", "--batch-size", "8", "--validate-every", "3", "--eval-episodes-per-task", "0"]
    continual = [f"--train.{flag[2:]}" if flag.startswith("--") else flag for flag in rl]
    continual += ["--train.suite.tasks", TASK, "--adapter.rank", "2", "--eval-episodes-per-task", "2"]
    demos = ["demos", "tabletop", "--suite.tasks", TASK, "--episodes", "12", "--workers", "1"]
    return [
        Case("demos", tuple(demos), flag="--out", resumes=False),
        Case("sft", ("sft", "tabletop_nano", "--dataset", str(dataset), "--suite.tasks", TASK, *imitation)),
        Case("train", ("train", "--policy", str(policy), "--suite.name", "tabletop", "--suite.tasks", TASK, *rl)),
        Case(
            "continual",
            ("continual", "tabletop_continual", "--train.policy", str(policy), "--tasks", TASK, *continual),
        ),
        Case("demo", ("demo",), resumes=False, order={"demo": str(policy)}),
    ]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None: it hung, and was killed."""
    errors: str
    output: str
    left: int
    """Processes of it that were there still, and were killed."""

    @property
    def traceback(self) -> bool:
        return bool(TRACEBACK.search(self.errors))

    @property
    def last(self) -> str:
        """The last line of its errors."""
        return (self.errors.strip() or self.output.strip() or "nothing was said").splitlines()[-1]


class Commands:
    """Runs simplevla's commands, in forked processes or in new ones. Use as a context manager."""

    def __init__(self, work: Path) -> None:
        self.work = work
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self._environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._forker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.experiments.reliability_fork"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(work / "forker.log").open("w"),
            bufsize=0,
            env=self._environment,
        )

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait()

    def run(self, arguments: list[str], kill_after_s: float | None = None, **order: Any) -> Ended:
        """One command in a forked process, killed after `kill_after_s` of its life if it lives as long."""
        assert self._forker.stdin is not None
        order |= {"arguments": arguments, "stdout": str(self.work / "out"), "stderr": str(self.work / "err")}
        self._forker.stdin.write(json.dumps(order).encode() + b"\n")
        pid, code, deadline = int(self._line(60)), None, time.monotonic() + LONGEST_S
        if kill_after_s is not None and (code := self._code(kill_after_s)) is None:
            self._kill(pid)
        if code is None and (code := self._code(deadline - time.monotonic())) is None:
            self._kill(pid)
            self._line(60)
        return self._ended(pid, code)

    def run_new(self, arguments: list[str], kill_after_s: float) -> Ended:
        """One command in a process of its own, imports included, killed after a time."""
        with (self.work / "out").open("w") as out, (self.work / "err").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "simplevla.cli", *arguments],
                stdout=out,
                stderr=errors,
                env=self._environment,
                start_new_session=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after_s)
            process.kill()
            return self._ended(process.pid, process.wait())

    def _code(self, timeout_s: float) -> int | None:
        line = self._line(timeout_s)
        return int(line) if line else None

    def _line(self, timeout_s: float) -> str:
        """The next line that the forking process says; empty if it says none."""
        assert self._forker.stdout is not None
        if not select.select([self._forker.stdout], [], [], max(0.0, timeout_s))[0]:
            return ""
        line = self._forker.stdout.readline().decode()
        assert line, f"the forking process died: {(self.work / 'forker.log').read_text()[-1000:]}"
        return line

    @staticmethod
    def _kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _ended(self, pid: int, code: int | None) -> Ended:
        deadline = time.monotonic() + GONE_S
        while (left := session(pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for other in left:
            self._kill(other)
        errors, output = (self.work / name for name in ("err", "out"))
        return Ended(code, errors.read_text(errors="replace"), output.read_text(errors="replace"), len(left))


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def end_of(folder: Path, ignored: re.Pattern[str] = BY_THE_CLOCK) -> dict[str, str]:
    """What a finished command left, less the keys that are ignored: file -> hash of its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: _hash(path, ignored) for name, path in names.items() if not any(part in name for part in UNCOMPARED)}


def _hash(path: Path, ignored: re.Pattern[str]) -> str:
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        content = json.dumps([_less(json.loads(line), ignored) for line in lines]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _less(value: Any, ignored: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        return {key: _less(other, ignored) for key, other in value.items() if not ignored.fullmatch(key)}
    return [_less(other, ignored) for other in value] if isinstance(value, list) else value


def differences(end: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that are missing, too many or of another content."""
    return sorted(name for name in end.keys() | expected.keys() if end.get(name) != expected.get(name))


def leftovers(folder: Path) -> list[str]:
    """Beginnings of files and folders that killed processes left, in a folder or beside it."""
    beside = [path for path in folder.parent.glob(f"*{folder.name}*") if path != folder]
    return [str(path) for path in [*beside, *folder.rglob("*.tmp"), *folder.rglob("*.partial")]]


def remove(folder: Path) -> None:
    """The folder, and what a killed command left beside it."""
    for path in folder.parent.glob(f"*{folder.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare(commands: Commands, folder: Path) -> tuple[Path, Path]:
    """A policy that half solves `TASK`, and a dataset; made once."""
    dataset, run = folder / "dataset", folder / "start"
    imitation = ["--batches", "200", "--batch-size", "64", "--eval-episodes-per-task", "0"]
    for arguments in (
        ["demos", "tabletop_nano", "--suite.tasks", TASK, "--episodes", "100", "--workers", "1", "--out", str(dataset)],
        ["sft", "tabletop_nano", *imitation, "--dataset", str(dataset), "--suite.tasks", TASK, "--run", str(run)],
    ):
        if not (dataset if arguments[0] == "demos" else run / "policy").exists():
            ended = commands.run(arguments)
            assert ended.code == 0, ended.errors
    return run / "policy", dataset
