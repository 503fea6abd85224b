"""Tasks one after another, for real but small: worker processes, a nano policy, RL on a fake suite."""

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapted_tinyvla import disturb
from continual_runs import IMITATION, ORDER, TASKS, config, demonstrations, saved_base, weights
from simplevla.adapters import structures
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import read_card
from simplevla.adapters.load import load_bank, load_policy
from simplevla.config import (
    SuiteConfig,
    TrainConfig,
    to_dict,
)
from simplevla.evaluation.result import EvaluationResult, Outcome
from simplevla.policies.base import Policy, Sampling
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.report.continual import write_continual_report
from simplevla.report.evidence import gather_evidence
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.training import continual as room
from simplevla.training.continual import continual
from simplevla.training.health import Health
from simplevla.training.learner import Learner
from simplevla.training.runlog import read_rows
from small_tinyvla import observations, rows
from started import worker_processes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "policy")


def suite_that_says_the_same(config: SuiteConfig) -> Suite:
    suite = make_suite(config)
    suite.tasks = tuple(replace(task, instruction="do it") for task in suite.tasks)
    return suite


def living_policies() -> int:
    return sum(isinstance(one, Policy) for one in gc.get_objects())


def test_one_policy_at_a_time_fills_the_memory(base: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def learner(policy: Policy, settings: TrainConfig) -> Learner:
        seen.append(living_policies() - before)
        return Learner(policy, settings)

    gc.collect()
    before = living_policies()
    # The collector comes by when it has many new objects; a policy of gigabytes is few.
    gc.disable()
    try:
        continual(config(base), tmp_path / "run", makers=replace(room.LOCAL, learner=learner))
    finally:
        gc.enable()
    assert seen == [1, 1]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    stages = [
        {key: value for key, value in stage.items() if key not in ("minutes", "message")} for stage in result["stages"]
    ]
    return {**result, "stages": stages}


Finished = tuple[Path, dict[str, Any]]
"""A continual run's folder and result."""


@pytest.fixture(scope="module")
def from_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = tmp_path_factory.mktemp("from_base") / "run"
    return run, continual(config(base), run)


@pytest.fixture(scope="module")
def from_previous(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = tmp_path_factory.mktemp("from_previous") / "run"
    return run, continual(config(base, start_from="previous"), run)


def test_a_row_and_a_card_have_the_success_that_was_just_measured(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = iter(
        ({"reach": 0, "near": 1, "far": 0}, {"reach": 2, "near": 0, "far": 1}, {"reach": 1, "near": 0, "far": 2})
    )

    def evaluated(engine: object, policy: Policy, suite: Suite, settings: object, *_: object) -> EvaluationResult:
        outcomes = [
            Outcome(task=task, initial_state=state, success=state < count, env_steps=1)
            for task, count in next(solved).items()
            for state in range(2)
        ]
        return EvaluationResult(
            suite=suite.name,
            split="test",
            protocol={},
            horizons=dict.fromkeys(TASKS, 11),
            greedy=True,
            temperature=None,
            seed=0,
            episodes=tuple(outcomes),
            wall_s=0.0,
            versions={},
            commit="unknown",
        )

    policy, cards = load_policy(base), []
    monkeypatch.setattr(room, "evaluate_with", evaluated)
    monkeypatch.setattr(room, "load_policy", lambda *_: policy)
    monkeypatch.setattr(room, "_stage", lambda config, suite, task, *_: {"task": task, "curve": [0.0], "episodes": 0})
    monkeypatch.setattr(room, "_export", lambda config, task, row, *_: cards.append((task, row.by_task[task].solved)))
    result = continual(config(base), tmp_path / "run")
    assert cards == [("reach", 2), ("far", 2)]
    assert result["matrix"] == [[0.0, 0.5, 0.0], [1.0, 0.0, 0.5], [0.5, 0.0, 1.0]]


def test_per_task_adapters_come_and_what_was_there_stays_bit_for_bit(base: Path, from_base: Finished) -> None:
    run, result = from_base
    assert json.loads((run / "continual.json").read_text()) == json.loads(json.dumps(result))
    assert [len(row) for row in result["matrix"]] == [3, 3, 3]
    assert (result["tasks"], result["order"], result["structure"]) == (list(TASKS), list(ORDER), "per_task")
    # A task without an adapter is the base's business, and one whose adapter was trained before stays as it was.
    column = {task: [row[TASKS.index(task)] for row in result["matrix"]] for task in TASKS}
    assert len(set(column["near"])) == 1
    assert column["far"][0] == column["far"][1]
    assert column["reach"][1] == column["reach"][2]
    assert (result["NBT"], result["FWT"]) == (0.0, 0.0)
    first, second = (run / f"{number}_{task}" / "rl" / "policy" for number, task in enumerate(ORDER, start=1))
    expected = weights(base / "model.safetensors")
    assert weights(first / "model.safetensors") == weights(second / "model.safetensors") == expected
    adapter = "adapters/reach/adapter_model.safetensors"
    assert weights(first / adapter) == weights(second / adapter)
    assert weights(first / adapter) != weights(run / "1_reach" / "start" / adapter)
    bank = load_bank(second)
    assert bank.names == list(ORDER)
    assert [bank.entry(name).instructions for name in ORDER] == [("do reach",), ("do far",)]
    assert [stage["adapter_bytes"] for stage in result["stages"]] == [bank.bytes(name) for name in ORDER]
    for number, task in enumerate(ORDER, start=1):
        card = read_card(run / f"{number}_{task}" / "adapter")
        assert card.n == 2
        assert card.solved == round(2 * column[task][number])
        assert (card.name, card.seed, card.sampling["greedy"]) == (task, 0, True)  # type: ignore[index]
        warnings = [str(warning) for warning, _ in Health(read_rows(run / f"{number}_{task}" / "rl")).found]
        assert result["stages"][number - 1]["warnings"] == warnings
    page = write_continual_report(run).read_text()
    assert "after 2: far" in page
    assert "mean over k &lt; T" in page


def test_rows_are_evaluated_with_their_own_tasks_adapters(base: Path) -> None:
    policy = load_policy(base)
    bank = AdapterBank(policy)
    for number, task in enumerate(ORDER):
        bank.add(task, AdapterConfig(rank=2, alpha=2.0), instructions=[f"do {task}"])
        disturb(bank, task, seed=number)
    bank.activate("far", training=True)
    suite = make_suite(config(base).train.suite)
    deployed = structures.as_deployed(config(base), policy, suite)
    used = {"reach": "reach", "far": "far", "near": None}
    batch = observations([f"do {task}" for task in used])
    logprobs, traces = [], []
    for row, adapter in enumerate(used.values()):
        with bank.selected(adapter):
            sample = policy.act(rows(batch, [row]), Sampling(greedy=True), [np.random.default_rng(0)])
        logprobs.append(sample.logprobs[0])
        traces.append(sample.trace[0])
    got = deployed.act(batch, Sampling(greedy=True), [np.random.default_rng(0)] * 3)
    assert torch.equal(got.trace, torch.stack(traces))
    torch.testing.assert_close(got.logprobs, torch.stack(logprobs), atol=1e-5, rtol=0)
    # What was trained last, for every row, would be something else.
    last = policy.act(batch, Sampling(greedy=True), [np.random.default_rng(0)] * 3)
    assert ((last.logprobs - got.logprobs).abs().amax(dim=1) > 1e-3).tolist() == [True, False, True]
    for structure in ("shared", "merge_then_new", "full"):
        assert structures.as_deployed(config(base, structure=structure), policy, suite) is policy


def test_shared_merged_and_full(base: Path, tmp_path: Path) -> None:
    expected = weights(base / "model.safetensors")
    policies = {}
    for structure in ("shared", "merge_then_new", "full"):
        continual(config(base, structure=structure), tmp_path / structure)
        policies[structure] = tmp_path / structure / "2_far" / "rl" / "policy"
    shared = load_bank(policies["shared"])
    assert shared.names == ["shared"]
    assert shared.entry("shared").instructions == ("do reach", "do far")
    assert weights(policies["shared"] / "model.safetensors") == expected
    # The second task starts from the first one's adapter, which is now part of the base.
    assert load_bank(policies["merge_then_new"]).names == ["far"]
    merged, start = (
        weights(tmp_path / "merge_then_new" / "2_far" / part / "model.safetensors") for part in ("rl/policy", "start")
    )
    assert merged == start
    changed = {name for name in expected if merged[name] != expected[name]}
    assert changed
    assert all(name.endswith("weight") for name in changed)
    assert not (policies["full"] / "adapters").exists()
    full = weights(policies["full"] / "model.safetensors")
    assert all(full[name] != expected[name] for name in expected)


def test_an_adapter_can_go_on_from_the_last_tasks(from_base: Finished, from_previous: Finished) -> None:
    for (run, _), goes_on in ((from_base, False), (from_previous, True)):
        first, second = (run / stage / part for stage, part in (("1_reach", "rl/policy"), ("2_far", "start")))
        trained, begun = (
            weights(next((folder / "adapters" / name).glob("*.safetensors")))
            for folder, name in ((first, "reach"), (second, "far"))
        )
        # One task at a time is rolled out, though all are evaluated.
        assert [list(row["success_by_task"]) for row in read_rows(first.parent) if "groups_kept" in row] == 2 * [
            ["reach"]
        ]
        # The instruction is each task's own.
        cards = [read_card(place / "adapters" / name) for place, name in ((first, "reach"), (second, "far"))]
        assert [card.instructions for card in cards] == [("do reach",), ("do far",)]
        assert trained.keys() == begun.keys()
        # A new adapter is the identity: its second matrices are zero.
        zero = all(not any(value) for name, value in begun.items() if "lora_B" in name)
        assert (begun == trained, zero) == (goes_on, not goes_on)


@pytest.mark.parametrize("moment", ["before the second RL run", "in the second RL run", "before the last row"])
def test_a_run_goes_on_wherever_it_was_stopped(
    moment: str, base: Path, from_previous: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, (uncut, whole) = config(base, start_from="previous"), from_previous
    real_train, real_evaluate = room.train, room.evaluate_with
    calls = {"train": 0, "evaluate": 0}

    def train(*arguments: Any, **named: Any) -> Any:
        calls["train"] += 1
        if calls["train"] == 2 and moment == "before the second RL run":
            raise KeyboardInterrupt
        if calls["train"] == 2 and moment == "in the second RL run":
            real_train(replace(arguments[0], updates=1), *arguments[1:], **named)
            written = json.loads((arguments[1] / "config.json").read_text())
            (arguments[1] / "config.json").write_text(json.dumps({**written, "updates": 2}))
            raise KeyboardInterrupt
        return real_train(*arguments, **named)

    def evaluate(*arguments: Any, **named: Any) -> Any:
        calls["evaluate"] += 1
        if calls["evaluate"] == 3 and moment == "before the last row":
            raise KeyboardInterrupt
        return real_evaluate(*arguments, **named)

    monkeypatch.setattr(room, "train", train)
    monkeypatch.setattr(room, "evaluate_with", evaluate)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        continual(settings, cut)
    assert not (cut / "continual.json").exists()
    result = continual(settings, cut, resume=True)
    assert timeless(result) == timeless(whole)
    for file in ("model.safetensors", "adapters/far/adapter_model.safetensors"):
        assert weights(cut / "2_far/rl/policy" / file) == weights(uncut / "2_far/rl/policy" / file)
    # A run that was begun before a setting existed has its default.
    written = json.loads((cut / "config.json").read_text())
    del written["train"]["ray"], written["warmup_demos"]
    (cut / "config.json").write_text(json.dumps(written))
    before = calls["train"]
    monkeypatch.setattr(room, "commit", lambda: "a later one")
    assert continual(settings, cut, resume=True) == result
    assert calls["train"] == before


def test_a_row_that_is_measured_again_stands_once(base: Path, from_base: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(from_base[0], run)
    for lost in ("continual.json", "1_reach/row.json", "2_far/row.json"):
        (run / lost).unlink()
    result = continual(config(base), run, resume=True)
    assert result["matrix"] == from_base[1]["matrix"]
    assert [row["tasks_trained"] for row in read_rows(run)] == [0, 1, 2]


def test_simulators_of_an_evaluation_end_before_training_has_its_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    def learner(policy: Policy, settings: TrainConfig) -> Learner:
        alive.append(len(worker_processes()))
        return Learner(policy, settings)

    continual(config(base, tasks=("reach",)), tmp_path / "run", makers=replace(room.LOCAL, learner=learner))
    assert alive == [0]


def test_what_does_not_fit_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each once"):
        config(base, tasks=("reach", "reach"))
    with pytest.raises(ValueError, match="structure is 'shred'"):
        config(base, structure="shred")
    with pytest.raises(ValueError, match="start_from is for the structure per_task"):
        config(base, structure="shared", start_from="previous")
    with pytest.raises(ValueError, match="no task 'raech'"):
        continual(config(base, tasks=("raech",)), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "make_suite", suite_that_says_the_same)
        with pytest.raises(ValueError, match="tasks 'far' and 'reach' have the same instruction, 'do it'"):
            continual(config(base, tasks=("far", "reach")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="exists already"):
        continual(config(base), tmp_path / "run")
    with pytest.raises(ValueError, match=r"config.json: ContinualConfig lacks 'train'"):
        continual(config(base), tmp_path / "run", resume=True)
    other = config(base, structure="shared", tasks=("far",))
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(other)))
    with pytest.raises(ValueError, match=r"another config: tasks is .*; structure is"):
        continual(config(base), tmp_path / "run", resume=True)


def test_every_policy_computes_where_it_was_asked_to(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no second device here: moving a policy is noted instead, and whatever computes must have been moved."""
    moved: dict[int, tuple[Policy, str]] = {}
    computed: list[str] = []

    def note(policy: Policy, device: str) -> None:
        moved[id(policy)] = policy, device

    def watch(name: str) -> Callable[..., Any]:
        original = getattr(TinyVLA, name)

        def watched(policy: TinyVLA, *arguments: Any, **options: Any) -> Any:
            where = moved.get(id(policy), (policy, "nowhere"))[1]
            assert where == "cuda", f"{name} on {where}"
            computed.append(name)
            return original(policy, *arguments, **options)

        return watched

    for module in ("adapters.load", "training.imitation"):
        monkeypatch.setattr(f"simplevla.{module}.move_to_device", note)
    for name in ("act", "score", "imitation_loss"):
        monkeypatch.setattr(TinyVLA, name, watch(name))
    data = (demonstrations(tmp_path / "data", "far"),)
    settings = config(base, structure="merge_then_new", data=data, warmup=IMITATION)
    run = tmp_path / "run"
    continual(replace(settings, train=replace(settings.train, device="cuda")), run)
    gather_evidence(run / "2_far" / "rl")
    assert set(computed) == {"act", "score", "imitation_loss"}
