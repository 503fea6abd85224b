"""Run folders: one process each, nobody else's files, whole histories, and starts that leave nothing behind."""

import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla import cli, recipes
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.recipes.demo import demo
from simplevla.storage import FolderLock, atomic_file
from simplevla.training import loop
from simplevla.training.continual import continual
from simplevla.training.imitation import sft
from simplevla.training.loop import train

HOLD = """
import sys
from pathlib import Path
from simplevla.storage import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    monkeypatch.setattr("simplevla.evaluation.evaluate.load_policy", load_fake_policy)
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


def commands(config: TrainConfig) -> dict[str, Callable[[Path], object]]:
    tasks = recipes.CONTINUAL["tabletop_continual"]()
    tasks = replace(tasks, train=config, tasks=("reach",))
    return {
        "train": lambda run: train(config, run),
        "sft": lambda run: sft(SFTConfig(dataset=str(run / "nothing")), run),
        "continual": lambda run: continual(tasks, run),
        "demo": lambda run: demo(run),
    }


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("command", ["train", "sft", "continual", "demo"])
def test_a_second_process_is_told_who_is_in_the_folder(config: TrainConfig, tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on host {platform.node()}"):
            commands(config)[command](run)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    # However it ended, the folder is free, and holds nothing that a new run would have to fear.
    with FolderLock(run):
        assert names(run) == [".lock"]


@pytest.mark.parametrize("command", ["train", "sft", "continual", "demo"])
def test_what_somebody_else_wrote_stays(config: TrainConfig, tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    (run / "thesis").mkdir(parents=True)
    (run / "thesis" / "chapter1.tex").write_text("years of work")
    before = names(run)
    with pytest.raises(UserError, match="run exists already"):
        commands(config)[command](run)
    assert names(run) == before


@pytest.mark.parametrize("existed", [True, False])
def test_a_start_that_fails_leaves_no_run(
    config: TrainConfig, tmp_path: Path, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    if existed:
        run.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_SUITE_BUILD", "raise")
        with pytest.raises(UserError, match="no display in this fake world"):
            train(config, run)
    with pytest.raises(UserError):
        sft(SFTConfig(dataset=str(tmp_path / "nothing")), run)
    assert run.exists() is existed
    assert not existed or names(run) == []


def test_a_start_that_was_killed_while_it_wrote_its_first_file_can_be_repeated(
    config: TrainConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.4711.tmp").write_text('{"suite": {"na')
    (run / ".lock").write_text("process 4711 on host gone")
    assert train(config, run).update == 2
    assert not [name for name in names(run) if name.endswith(".tmp")]


def test_a_resumed_run_removes_what_a_killed_one_had_begun(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(config, updates=1), run)
    (run / "checkpoints" / ".update_000002.tmp" / "policy").mkdir(parents=True)
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / ".before.json.4711.tmp").write_text("{")
    # Killed between the two renames of an exchange: the old one is put back before anything else happens.
    os.rename(run / "policy", run / ".policy.replaced.tmp")
    train(replace(config, updates=1), run, resume=True)
    assert not [name for name in names(run) if name.endswith(".tmp")]
    assert (run / "policy" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (
            lambda run: (run / "metrics.jsonl").unlink(),
            r"metrics.jsonl is missing; update_000002 was written when it had",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text("{}\n"),
            r"metrics.jsonl has 3 bytes; update_000002 was written",
        ),
        (
            lambda run: shutil.rmtree(run / "checkpoints"),
            r"no checkpoint, though update 2 was reached: .* lose the 2 rows",
        ),
    ],
)
def test_a_history_that_is_not_whole_is_not_gone_on_with(
    config: TrainConfig, tmp_path: Path, lose: Callable[[Path], object], message: str
) -> None:
    run = tmp_path / "run"
    train(config, run)
    lose(run)
    before = {name: (run / name).read_bytes() for name in names(run) if (run / name).is_file()}
    with pytest.raises(UserError, match=message):
        train(config, run, resume=True)
    after = {name: (run / name).read_bytes() for name in names(run) if (run / name).is_file()}
    assert after.pop(".lock") == before.pop(".lock") == f"process {os.getpid()} on host {platform.node()}".encode()
    assert after == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    straight = train(config, tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, run)
    assert train(config, run, resume=True).update == straight.update
    assert (run / "policy/model.safetensors").read_bytes() == (
        tmp_path / "straight/policy/model.safetensors"
    ).read_bytes()


def test_a_folder_that_is_deleted_in_mid_run_is_not_made_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, threads = tmp_path / "run", []
    healthy = loop.Health.judge

    def delete(health: loop.Health, row: dict[str, object]) -> object:
        shutil.rmtree(run)
        return healthy(health, row)

    monkeypatch.setattr(loop.Health, "judge", delete)
    monkeypatch.setattr(threading, "excepthook", threads.append)
    with pytest.raises(OSError, match="run has been deleted or moved while this process was writing into it"):
        train(config, run)
    assert not run.exists()
    assert threads == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "model.safetensors") as temporary:
            save_file({"w": torch.ones(2)}, temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode


def evaluate(out: Path, policy: str, *more: str) -> int:
    workers = ["--rollout.workers", "1", "--rollout.slots-per-worker", "2"]
    return cli.main(["eval", "--policy", policy, "--suite.name", "fake_suite:make", *workers, "--out", str(out), *more])


def test_a_result_is_not_overwritten_unless_told(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "result.json"
    out.write_text("of last year")
    assert evaluate(out, "no policy: refused before it is looked at") == 2
    assert "result.json exists already; give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "of last year"
    assert evaluate(out, config.policy, "--overwrite") == 0
    assert '"overall"' in out.read_text()


def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path / "file" / "result.json", "no policy: refused before it is looked at") == 2
    assert "result.json could not be written: File exists" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_in_the_end_has_been_shown(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simplevla.storage._flush", full)
    assert evaluate(tmp_path / "result.json", config.policy) == 2
    shown = capsys.readouterr()
    assert "result.json could not be written: No space left on device. Free space" in shown.err
    assert "overall" in shown.out
    assert not (tmp_path / "result.json").exists()
