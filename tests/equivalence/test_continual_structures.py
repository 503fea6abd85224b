"""What each structure trains, from policies that have adapters already."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapted_tinyvla import disturb
from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.config import AdapterConfig, ContinualConfig, Structure
from simplevla.adapters.load import load_policy
from simplevla.adapters.structures import adapter_name, as_deployed, check_base, check_tasks, prepare
from simplevla.config import SuiteConfig, TrainConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.suites.registry import make_suite
from small_tinyvla import for_fake_suite, observations

TASKS = ("reach", "near", "far")
LORA = AdapterConfig(rank=2, alpha=2.0)
SUITE = make_suite(SuiteConfig(name="fake_suite:make", tasks=TASKS))
BATCH = observations([f"do {task}" for task in TASKS])


def config(structure: Structure, tasks: tuple[str, ...] = ("reach", "far"), **changes: Any) -> ContinualConfig:
    train = TrainConfig(suite=SuiteConfig(name="fake_suite:make", tasks=TASKS), policy="given")
    return ContinualConfig(train=train, tasks=tasks, structure=structure, **{"adapter": LORA, **changes})


def fine_tuned(instructions: tuple[str, ...], adapter: AdapterConfig = LORA, name: str = "sft") -> Policy:
    """A policy that acts by an adapter, as `sft --adapter-rank` leaves it."""
    policy = for_fake_suite(TASKS)
    bank = AdapterBank(policy)
    bank.add(name, adapter, instructions=instructions)
    disturb(bank, name, seed=1)
    bank.activate(name, training=True)
    return policy


def behaviour(policy: Policy) -> np.ndarray:
    generators = [np.random.default_rng(0) for _ in TASKS]
    return policy.act(BATCH, Sampling(greedy=True), generators).actions


@pytest.mark.parametrize("structure", ["per_task", "shared", "merge_then_new"])
@pytest.mark.parametrize("told", [True, False])
def test_the_first_task_goes_on_from_the_adapter_that_acts(structure: Structure, told: bool) -> None:
    settings = config(structure)
    policy = fine_tuned(tuple(f"do {task}" for task in TASKS) if told else ())
    check_base(settings, policy, SUITE)
    policy = fine_tuned(tuple(f"do {task}" for task in TASKS) if told else ())
    given = behaviour(policy)
    bank = bank_of(policy)
    with bank.selected(None):
        assert np.abs(behaviour(policy) - given).max() > 0.01
    np.testing.assert_array_equal(behaviour(as_deployed(settings, policy, SUITE)), given)
    prepare(settings, policy, SUITE, "reach", 1)
    assert bank.active == adapter_name(settings, "reach")
    # What is trained begins as what was there, and so does what the tasks without an adapter are served by.
    np.testing.assert_array_equal(behaviour(policy), given)
    np.testing.assert_array_equal(behaviour(as_deployed(settings, policy, SUITE)), given)
    if structure == "per_task":
        assert bank.entry("sft").instructions == ("do near", "do far")
        disturb(bank, "reach", seed=2)
        prepare(settings, policy, SUITE, "far", 2)
        np.testing.assert_array_equal(behaviour(policy), given)
        assert {name: bank.entry(name).instructions for name in bank.names} == {
            "sft": ("do near",),
            "reach": ("do reach",),
            "far": ("do far",),
        }
    if structure == "merge_then_new":
        assert bank.names == ["reach"]
        disturb(bank, "reach", seed=2)
        trained = behaviour(policy)
        prepare(settings, policy, SUITE, "far", 2)
        assert bank.names == ["far"]
        np.testing.assert_allclose(behaviour(policy), trained, atol=1e-4)


def test_an_adapter_of_another_task_is_left_alone() -> None:
    policy = fine_tuned(("do near",), name="near")
    bank = bank_of(policy)
    with bank.selected(None):
        plain = behaviour(policy)
    prepare(config("per_task"), policy, SUITE, "reach", 1)
    np.testing.assert_array_equal(behaviour(policy), plain)


@pytest.mark.parametrize(
    ("structure", "policy", "changes", "message"),
    [
        ("full", lambda: fine_tuned(()), {}, r"has the adapters sft, and the structure 'full' trains a policy without"),
        ("merge_then_new", lambda: for_fake_suite(TASKS).to(torch.bfloat16), {}, r"has bfloat16 weights, into which"),
        (
            "merge_then_new",
            lambda: for_fake_suite(TASKS),
            {"adapter": AdapterConfig(kind="bottleneck")},
            r"a bottleneck is nonlinear; expected a LoRA",
        ),
        (
            "merge_then_new",
            lambda: fine_tuned((), AdapterConfig(kind="bottleneck", rank=2)),
            {},
            r"a bottleneck is nonlinear; expected a LoRA",
        ),
        (
            "per_task",
            lambda: fine_tuned(("do near",), name="reach"),
            {},
            r"has an adapter 'reach', and acts on reach by its base",
        ),
    ],
)
def test_a_base_that_would_fail_later_is_refused_first(
    structure: Structure, policy: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_base(config(structure, **changes), policy(), SUITE)


def test_a_shared_adapter_that_does_not_act_is_refused() -> None:
    policy = fine_tuned(())
    bank_of(policy).add("shared", LORA)
    with pytest.raises(ValueError, match="has an adapter 'shared', and acts on reach by 'sft'"):
        check_base(config("shared"), policy, SUITE)


def test_a_frozen_adapter_is_refused_before_anything_is_trained() -> None:
    policy = fine_tuned(("do reach",), name="reach")
    bank_of(policy).freeze("reach")
    with pytest.raises(ValueError, match="adapter 'reach' is frozen"):
        check_base(config("per_task"), policy, SUITE)


def test_other_settings_of_an_adapter_that_goes_on_are_warned_of() -> None:
    policy = fine_tuned(())
    with pytest.warns(UserWarning, match="adapter.* go on from sft, with their settings"):
        check_base(config("shared", adapter=AdapterConfig(rank=4)), policy, SUITE)


def test_a_sentence_with_a_comma_has_an_adapter() -> None:
    sentences = ("pick_up_the_cube,_then_stop", "put_it_on_the_plate's_left")
    settings = config("per_task", tasks=sentences)
    suite = make_suite(SuiteConfig(name="fake_suite:make", tasks=TASKS[:2]))
    suite.tasks = tuple(
        replace(task, name=name, instruction=name) for task, name in zip(suite.tasks, sentences, strict=True)
    )
    check_tasks(settings, suite)
    assert [adapter_name(settings, name) for name in sentences] == [
        "pick_up_the_cube_then_stop",
        "put_it_on_the_plate_s_left",
    ]
    suite.tasks = tuple(
        replace(task, name=name, instruction=name) for task, name in zip(suite.tasks, ("a,b", "a b"), strict=True)
    )
    with pytest.raises(ValueError, match="'a,b' and 'a b' would both be called 'a_b'"):
        check_tasks(config("per_task", tasks=("a,b", "a b")), suite)
    suite.tasks = tuple(
        replace(task, name=name, instruction=name) for task, name in zip(suite.tasks, "!?", strict=True)
    )
    with pytest.raises(ValueError, match="'' can't be an adapter's name"):
        check_tasks(config("per_task", tasks=("!",)), suite)


def test_a_policy_folder_keeps_what_prepare_made(tmp_path: Path) -> None:
    policy = fine_tuned(("do reach",))
    prepare(config("per_task"), policy, SUITE, "reach", 1)
    expected = behaviour(policy)
    policy.save(tmp_path / "start")
    loaded = load_policy(tmp_path / "start")
    np.testing.assert_array_equal(behaviour(loaded), expected)
    assert bank_of(loaded).active == "reach"
