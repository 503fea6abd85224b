import numpy as np
import pytest
import torch

import small_tinyvla as small
from adapted_tinyvla import LORA, OBSERVATIONS, generators, make_bank
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.embedding import embed, prototype
from simplevla.adapters.routing import NearestRouter, RoutedPolicy, TaskRouter, routing_accuracy
from simplevla.config import DenoisingConfig
from simplevla.policies.base import Sampling
from small_tinyvla import for_rl

TASKS = {
    "lift": "lift the red block",
    "push": "push the red block to the left zone",
    "stack": "stack the red block on the blue block",
    "open": "open the top drawer",
}
PARAPHRASES = [
    ("lift up the red block", "lift"),
    ("please lift the red block", "lift"),
    ("pushing the red block into the left zone", "push"),
    ("move the red block to the left zone", "push"),
    ("put the red block on the blue block", "stack"),
    ("open the drawer at the top", "open"),
]


def routed_bank() -> AdapterBank:
    bank = AdapterBank(small.make())
    for name, instruction in TASKS.items():
        bank.add(name, LORA, instructions=[instruction])
    return bank


def test_tasks_are_routed_by_their_exact_instruction() -> None:
    router = TaskRouter.of(routed_bank(), base_for=["wave"])
    assert [router(text) for text in TASKS.values()] == list(TASKS)
    assert router("wave") is None
    with pytest.raises(
        ValueError, match=r"no adapter for the task 'lift the Red block'; known tasks: 'wave', 'lift the"
    ):
        router("lift the Red block")


def test_a_task_of_two_adapters_is_refused() -> None:
    bank = routed_bank()
    with pytest.raises(ValueError, match="'open the top drawer' belongs to adapter 'open' and to the base"):
        TaskRouter.of(bank, base_for=["open the top drawer"])
    bank.add_instructions("push", ["lift the red block"])
    with pytest.raises(ValueError, match="'lift the red block' belongs to adapter 'push' and to lift"):
        TaskRouter.of(bank)


def test_paraphrases_find_the_nearest_task_and_their_accuracy_is_counted() -> None:
    nearest = NearestRouter(routed_bank())
    exact = TaskRouter({text: name for name, text in TASKS.items()})
    pairs = [(text, name) for name, text in TASKS.items()] + PARAPHRASES
    assert routing_accuracy(nearest, pairs).mistakes == ()
    counted = routing_accuracy(exact, pairs)
    assert (counted.correct, counted.n) == (4, 10)
    assert counted.mistakes[0] == ("lift up the red block", "lift", None)
    wrong = routing_accuracy(nearest, [("open the top drawer", "push"), ("lift the red block", "lift")])
    assert (wrong.correct, wrong.mistakes) == (1, (("open the top drawer", "push", "open"),))


def test_a_refusal_is_no_hit_where_the_base_was_right() -> None:
    assert routing_accuracy(TaskRouter({}), [("wave", None)]).correct == 0
    assert routing_accuracy(TaskRouter({"wave": None}), [("wave", None)]).correct == 1


def test_an_instruction_without_anything_in_common_is_refused() -> None:
    bank = routed_bank()
    with pytest.raises(ValueError, match=r"no adapter for the task '\.\.\.': the nearest, 'lift', has cosine 0.00"):
        NearestRouter(bank)("...")
    strict = NearestRouter(bank, names=["lift", "push"], least=0.9)
    assert strict("lift the red block") == "lift"
    with pytest.raises(ValueError, match=r"expected more than 0\.9"):
        strict("open the top drawer")


def test_only_adapters_with_instructions_can_be_nearest() -> None:
    bank = routed_bank()
    bank.add("silent", LORA)
    assert NearestRouter(bank).names == list(TASKS)
    with pytest.raises(ValueError, match="can't be routed to: silent"):
        NearestRouter(bank, names=["lift", "silent"])


def test_embeddings_are_unit_vectors_that_know_word_order() -> None:
    first, second = embed("red block on blue block"), embed("blue block on red block")
    assert first.dtype == np.float32
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    assert embed("Red  block, on blue block!") @ first == pytest.approx(1, abs=1e-6)
    assert 0.5 < first @ second < 0.99
    assert embed("pushing") @ embed("push") > 0.2 > embed("pushing") @ embed("lift")
    assert not embed("").any()


def test_a_prototype_is_the_direction_of_the_mean() -> None:
    first, second = embed("lift the red block"), embed("open the drawer")
    expected = (first + second) / np.linalg.norm(first + second)
    np.testing.assert_allclose(prototype(["lift the red block", "open the drawer"]), expected, atol=1e-6)


def test_a_routed_policy_looks_like_the_bank_s() -> None:
    bank = make_bank(small.make(head="diffusion"))
    policy = RoutedPolicy(bank, TaskRouter.of(bank))
    policy.prepare_for_rl(for_rl(DenoisingConfig(ratio="chunk", last_steps=3, frozen_backbone=True)))
    assert (policy.units, policy.scores_from_trace) == (3, True)
    for name in ("cameras", "state_dim", "chunk_length", "action_dim", "units", "statistics"):
        assert getattr(policy, name) == getattr(bank.policy, name)
    for name in ("unit_action_index", "unit_discount", "unit_clip_scale"):
        assert getattr(policy, name).tolist() == getattr(bank.policy, name).tolist()
    with pytest.raises(ValueError, match="activate an adapter"):
        policy.imitation_loss(OBSERVATIONS, torch.zeros(6, 3, 2), torch.ones(6, 3, dtype=torch.bool))


def test_a_row_without_adapter_is_named_before_anything_is_computed() -> None:
    bank = make_bank()
    policy = RoutedPolicy(bank, TaskRouter.of(bank))
    with pytest.raises(ValueError, match="no adapter for the task 'press it'"):
        policy.act(OBSERVATIONS, Sampling(), generators(6))
    gone = RoutedPolicy(bank, TaskRouter(dict.fromkeys(small.INSTRUCTIONS, "third")))
    with pytest.raises(ValueError, match="no adapter is called 'third'; there are lora, bottleneck"):
        gone.act(OBSERVATIONS, Sampling(), generators(6))
    assert bank.active is None
