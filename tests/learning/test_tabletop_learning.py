"""The whole way on real physics and pixels, small: demonstrations, SFT, then RL must improve; without advantages it must not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.recipes import tabletop
from simplevla.report.choice import choose_states
from simplevla.report.evidence import gather_evidence
from simplevla.report.page import write_report
from simplevla.report.videos import read_clips
from simplevla.runs import novelty_of_run
from simplevla.training import loop
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

SUITE = SuiteConfig(name="tabletop", tasks=("slide_lid", "push_to_strip"))
UPDATES = 12


@pytest.fixture(scope="module")
def imitator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a hesitant imitator of hesitant demonstrations."""
    folder = tmp_path_factory.mktemp("imitation")
    generate(replace(tabletop.demos(), suite=SUITE, episodes=100), folder / "demos", progress=False)
    config = replace(tabletop.sft(), dataset=str(folder / "demos"), batches=150, batch_size=64, validate_every=150)
    policy = sft(replace(config, suite=SUITE, eval_episodes_per_task=5), folder / "sft")
    closed_loop = read_rows(folder / "sft")[-1]
    assert closed_loop["success"] == sum(closed_loop[f"success/{task}"] for task in SUITE.tasks) / 2
    return policy


def rl(policy: Path, updates: int = UPDATES, groups: int = 16) -> TrainConfig:
    return replace(
        tabletop.train(),
        suite=SUITE,
        policy=str(policy),
        updates=updates,
        sampling=SamplingConfig(groups=groups, group_size=8, temperature=1.0),
        optimizer=replace(tabletop.train().optimizer, lr=3e-4, warmup_steps=2),
        rollout=RolloutConfig(slots_per_worker=16),
        eval_every=0,
        checkpoint_every=updates,
    )


def test_reinforcement_improves_an_imitator(imitator: Path, tmp_path: Path) -> None:
    train(rl(imitator), tmp_path / "run")
    success = [row["train_success"] for row in read_rows(tmp_path / "run")]
    before, after = sum(success[:2]) / 2, sum(success[-4:]) / 4
    # About 500 and 800 episodes at 12 to 36 % success: more than three standard errors of the difference.
    assert after > before + 0.08, success


def test_without_advantages_nothing_is_learned(imitator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "group_relative_advantages", torch.zeros_like)
    train(rl(imitator, updates=1, groups=4), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (imitator, tmp_path / "run" / "policy"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def result_states(result: EvaluationResult, task: str) -> list[int]:
    return [episode.initial_state for episode in result.episodes if episode.task == task]


def test_report_evaluates_and_films_both_policies_once(imitator: Path, tmp_path: Path) -> None:
    run, suite = tmp_path / "run", replace(SUITE, tasks=("slide_lid",))
    train(replace(rl(imitator, updates=1, groups=4), suite=suite), run)
    gather_evidence(run)
    results = [read_result(run / "eval" / f"{name}.json") for name in ("before", "after")]
    assert [(result.split, result.overall.n) for result in results] == [("test", 50)] * 2
    assert results[0].policy_sha256 != results[1].policy_sha256
    choice = choose_states(results[0], results[1])
    assert choice.neutral == [(task, result_states(results[0], task)[0]) for task in suite.tasks]
    for name, result in zip(("before", "after"), results, strict=True):
        clips = {(clip.task, clip.initial_state): clip for clip in read_clips(run / "videos", name)}
        evaluated = {(episode.task, episode.initial_state): episode for episode in result.episodes}
        assert list(clips) == choice.states
        for state, clip in clips.items():
            assert (clip.success, clip.env_steps) == (evaluated[state].success, evaluated[state].env_steps)

    def written() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name != ".lock"}

    files = written()
    gather_evidence(run)
    assert written() == files
    shutil.rmtree(run / "policy")
    shutil.copytree(imitator, run / "policy")
    gather_evidence(run)
    after = read_result(run / "eval" / "after.json")
    assert after.policy_sha256 == policy_fingerprint(run / "policy") != results[1].policy_sha256


def test_novelty_of_a_run_is_in_its_report(imitator: Path, tmp_path: Path) -> None:
    run, suite = tmp_path / "run", replace(SUITE, tasks=("push_to_strip",))
    train(replace(rl(imitator, updates=1, groups=4), suite=suite), run)
    found = novelty_of_run(run)
    assert (len(found.demonstrations.solved), found.before.episodes, found.after.episodes) == (50, 50, 50)
    assert found.before.solved, "the imitator solves some"
    assert found.before.ended_otherwise == found.after.ended_otherwise == 0
    assert found.demonstrations.without("touches blue").solved == 0
    assert found.demonstrations.novel.solved <= 1
    greedy = evaluate(imitator, suite)
    solved = {episode.initial_state: episode.env_steps for episode in greedy.episodes if episode.success}
    assert {episode.initial_state: episode.env_steps for episode in found.before.solved} == solved
    page = write_report(run).read_text()
    assert "What RL changed in behaviour" in page
    assert "The most novel solved episode of each task" in page
    assert page.count("data:video/mp4;base64") == 2


def test_a_resumed_run_ends_bit_for_bit_on_several_threads(imitator: Path, tmp_path: Path) -> None:
    config = replace(rl(imitator, updates=2, groups=4), checkpoint_every=1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(config, whole)
        shutil.copytree(whole, cut)
        shutil.rmtree(cut / "policy")
        shutil.rmtree(cut / "checkpoints" / "update_000002")
        train(config, cut, resume=True)
    finally:
        torch.set_num_threads(threads)
    files = [(run / "policy" / "model.safetensors").read_bytes() for run in (whole, cut)]
    assert files[0] == files[1]
    assert [row["train_success"] for row in read_rows(whole)] == [row["train_success"] for row in read_rows(cut)]
