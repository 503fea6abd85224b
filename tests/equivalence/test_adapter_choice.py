"""Which adapter of a policy acts: the one that is asked for, and a warning where it is another task's."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import small_tinyvla as small
from adapted_tinyvla import LORA, disturb, make_bank
from simplevla import cli
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.load import load_policy
from simplevla.adapters.routing import RoutedPolicy, acting_with, warn_of_idle_adapters
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.serving.batching import Question, answer_all, warm_up
from simplevla.types import Observation

TASKS = ("reach", "far", "near")
SEED_THAT_SOLVES, SEED_THAT_DOES_NOT = 1, 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy as `per_task` leaves it: the adapter of the task that came last acts."""
    bank = AdapterBank(small.for_fake_suite(TASKS))
    for name, seed in zip(TASKS, (SEED_THAT_SOLVES, SEED_THAT_DOES_NOT, SEED_THAT_SOLVES), strict=True):
        bank.add(name, LORA, instructions=[f"do {name}"])
        disturb(bank, name, seed, size=0.5)
    bank.activate("far", training=False)
    folder = tmp_path_factory.mktemp("bank") / "policy"
    bank.save(folder)
    return folder


def evaluated(policy: Path, out: Path, *more: str) -> EvaluationResult:
    few = ["--rollout.workers", "1", "--rollout.slots-per-worker", "2", "--episodes-per-task", "2", "--out", str(out)]
    assert cli.main(["eval", "--policy", str(policy), "--suite.name", "fake_suite:make", *few, *more]) == 0
    return read_result(out)


def test_eval_lets_the_adapter_act_that_is_asked_for(saved: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="adapter 'far' acts on 'do reach', an instruction of adapter 'reach'"):
        as_saved = evaluated(saved, tmp_path / "saved.json")
    alone = {name: evaluated(saved, tmp_path / f"{name}.json", "--adapter", name) for name in TASKS}
    routed = evaluated(saved, tmp_path / "routed.json", "--adapter", "routed")
    own = [episode for name in TASKS for episode in alone[name].episodes if episode.task == name]
    assert list(routed.episodes) == own
    assert as_saved.episodes == alone["far"].episodes != routed.episodes
    assert (as_saved.adapter, as_saved.as_saved, as_saved.how) == ("", True, "greedy")
    assert (routed.adapter, routed.as_saved, routed.how) == ("routed", False, "greedy, adapter routed")


def test_the_server_answers_each_instruction_with_its_own_adapter(saved: Path) -> None:
    seen = Observation(
        images={camera: np.full((8, 8, 3), 100, np.uint8) for camera in small.CAMERAS}, state=np.zeros(3, np.float32)
    )
    policy = acting_with(load_policy(saved), "routed")
    assert isinstance(policy, RoutedPolicy)
    warm_up(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_idle_adapters(policy)
    texts = [f"do {name}" for name in TASKS]
    answers = answer_all(policy, [Question(observation=seen, instruction=t, number=0, answer=None) for t in texts])  # type: ignore[arg-type]
    for name, text, answer in zip(TASKS, texts, answers, strict=True):
        np.testing.assert_array_equal(answer, acting_with(load_policy(saved), name).act_on(seen, text))
    assert not np.array_equal(answers[0], answers[1])


def test_an_instruction_that_is_an_adapter_s_own_is_not_routed_to_a_nearer_one() -> None:
    bank = AdapterBank(small.make())
    bank.add("wide", LORA, instructions=["lift the red block", "open the top drawer", "close the door"])
    bank.add("narrow", LORA, instructions=["lift the red blocks"])
    policy = acting_with(bank.policy, "routed")
    assert isinstance(policy, RoutedPolicy)
    assert policy.router("lift the red block") == "wide"
    assert policy.router("please lift the red block") == "narrow"


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="adapter is 'lift', and the policy has none"):
        acting_with(small.make(), "lift")
    bank = make_bank()
    with pytest.raises(ValueError, match="'third'"):
        acting_with(bank.policy, "third")
    assert acting_with(bank.policy, "") is bank.policy


@pytest.mark.parametrize(
    ("active", "instructions", "said"),
    [
        ("first", [small.INSTRUCTIONS[0]], None),
        (
            "first",
            [small.INSTRUCTIONS[1]],
            "adapter 'first' acts on 'push the blue block to the left zone', an instruction of",
        ),
        ("first", None, "adapter 'first' acts"),
        ("first", ["another one"], None),
        (None, [small.INSTRUCTIONS[0]], "the base acts, without adapters, on 'lift the red block', an instruction of"),
        ("new", None, None),
        ("again", [small.INSTRUCTIONS[0]], None),
    ],
)
def test_an_adapter_that_should_act_and_does_not_is_warned_of(
    active: str | None, instructions: list[str] | None, said: str | None
) -> None:
    bank = make_bank(first=LORA, second=LORA)
    bank.add("new", LORA)
    bank.add("again", start_from="first", instructions=[small.INSTRUCTIONS[0]])
    bank.activate(active, training=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_idle_adapters(bank.policy, instructions)
    assert len(caught) == (said is not None)
    if said:
        assert said in str(caught[0].message)
