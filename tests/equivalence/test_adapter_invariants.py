"""What adapters must not change, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

import small_tinyvla as small
from adapted_tinyvla import (
    BOTTLENECK,
    CONFIGS,
    LORA,
    OBSERVATIONS,
    base_tensors,
    disturb,
    generators,
    make_bank,
    outputs,
    same,
    sampled_group,
    snapshot,
    with_diffusion,
)
from sampled_episodes import update_by
from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_bank, load_policy
from simplevla.adapters.routing import RoutedPolicy, TaskRouter
from simplevla.config import OptimizerConfig, SamplingConfig, TrainConfig
from simplevla.policies.base import Sampling
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.training.learner import Learner

TRAINING = TrainConfig(
    sampling=SamplingConfig(groups=1, group_size=4, temperature=1.6),
    optimizer=OptimizerConfig(lr=0.01, weight_decay=0.5, warmup_steps=1),
    minibatches=1,
    microbatch_decisions=3,
)
POLICIES = {
    "nano": small.make,
    "siglip_test": lambda: small.make("siglip_test"),
    "diffusion": with_diffusion,
    "flow": lambda: small.make(head="flow"),
}


def policy_of(bank: AdapterBank) -> TinyVLA:
    assert isinstance(bank.policy, TinyVLA)
    return bank.policy


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("architecture", POLICIES)
def test_a_new_adapter_computes_what_the_base_does(architecture: str, kind: str) -> None:
    policy = POLICIES[architecture]()
    base = outputs(policy)
    bank = AdapterBank(policy)
    bank.add("new", CONFIGS[kind])
    for name, training in ((None, False), ("new", False), ("new", True)):
        bank.activate(name, training=training)
        assert torch.equal(outputs(policy), base)


@pytest.mark.parametrize("architecture", POLICIES)
def test_switching_adapters_off_gives_the_base_and_removing_them_its_modules(architecture: str) -> None:
    policy = POLICIES[architecture]()
    base, names = outputs(policy), [name for name, _ in policy.named_modules()]
    bank = make_bank(policy)
    for name in bank.names:
        bank.activate(name, training=False)
        assert not torch.equal(outputs(policy), base)
    bank.activate(None, training=False)
    assert torch.equal(outputs(policy), base)
    bank.remove("bottleneck")
    bank.activate("lora", training=False)
    bank.remove("lora")
    assert torch.equal(outputs(policy), base)
    assert [name for name, _ in policy.named_modules()] == names


@pytest.mark.parametrize("trained", ["lora", "bottleneck"])
@pytest.mark.parametrize("architecture", ["nano", "diffusion", "flow"])
def test_training_an_adapter_leaves_the_base_and_the_others_alone(architecture: str, trained: str) -> None:
    bank = make_bank(POLICIES[architecture](), lora=LORA, bottleneck=BOTTLENECK, other=LORA)
    policy = policy_of(bank)
    idle = [name for name in bank.names if name != trained]
    base = base_tensors(bank)
    before = {name: snapshot(bank.parameters(name)) for name in bank.names}
    computed = {}
    for name in idle:
        with bank.selected(name):
            computed[name] = outputs(policy)
    bank.activate(trained, training=True)
    learner = Learner(policy, TRAINING)
    # Weight decay moves all that an optimizer holds.
    assert learner.optimizer.parameters.keys() == set(bank.trainable_names())
    for update in (1, 2):
        stats = update_by(learner, [sampled_group(policy)], update)
        assert stats["optimizer_steps"] == 1
    assert same(base_tensors(bank), base)
    for name in idle:
        assert same(bank.parameters(name), before[name])
        with bank.selected(name):
            assert torch.equal(outputs(policy), computed[name])
    for key, parameter in bank.parameters(trained).items():
        assert not torch.equal(parameter, before[trained][key]), key


def test_a_copy_starts_where_the_other_is_and_goes_its_own_way() -> None:
    bank = make_bank(first=LORA)
    bank.add("second", start_from="first")
    with bank.selected("first"):
        expected = outputs(policy_of(bank))
    with bank.selected("second"):
        assert torch.equal(outputs(policy_of(bank)), expected)
    disturb(bank, "second", seed=9)
    with bank.selected("first"):
        assert torch.equal(outputs(policy_of(bank)), expected)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("architecture", ["nano", "siglip_test"])
def test_an_exported_adapter_does_the_same_in_another_process_s_policy(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    policy = small.make(architecture)
    policy.save(tmp_path / "base")
    bank = make_bank(policy, **{kind: CONFIGS[kind]})
    bank.export(kind, tmp_path / "exported")
    other = AdapterBank(load_policy(tmp_path / "base"))
    assert other.load(tmp_path / "exported") == kind
    assert same(other.parameters(kind), bank.parameters(kind))
    for each in (bank, other):
        each.activate(kind, training=False)
    assert torch.equal(outputs(policy_of(other)), outputs(policy))
    assert other.entry(kind).instructions == bank.entry(kind).instructions
    first, second = bank.entry(kind).prototype, other.entry(kind).prototype
    assert first is not None
    assert second is not None
    assert (first == second).all()


def test_the_base_is_saved_as_if_there_were_no_adapters(tmp_path: Path) -> None:
    policy = small.make()
    policy.save(tmp_path / "before")
    bank = make_bank(policy)
    bank.activate("bottleneck", training=True)
    bank.save_base(tmp_path / "after")
    files = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "after").iterdir())
    for name in files:
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name


@pytest.mark.parametrize(("active", "training"), [("lora", True), ("bottleneck", False), (None, False)])
def test_a_saved_policy_comes_back_with_its_adapters(active: str | None, training: bool, tmp_path: Path) -> None:
    bank = make_bank()
    bank.freeze("bottleneck")
    bank.activate(active, training=training)
    bank.policy.save(tmp_path / "policy")
    bank.policy.save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    loaded = bank_of(policy)
    assert (loaded.names, loaded.active, loaded.training) == (["lora", "bottleneck"], active, training)
    assert loaded.trainable_names() == bank.trainable_names()
    assert loaded.entry("bottleneck").frozen
    assert isinstance(policy, TinyVLA)
    assert torch.equal(outputs(policy), outputs(policy_of(bank)))
    assert load_bank(tmp_path / "policy").names == bank.names


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("architecture", POLICIES)
def test_a_mixed_batch_equals_its_rows_adapter_by_adapter(architecture: str, greedy: bool) -> None:
    bank = make_bank(POLICIES[architecture]())
    policy = RoutedPolicy(bank, TaskRouter.of(bank, base_for=[small.INSTRUCTIONS[2]]))
    sampling = Sampling(temperature=1.3, greedy=greedy)
    scored = Sampling(temperature=1.3)  # greedy denoising has no density
    mixed = policy.act(OBSERVATIONS, sampling, generators(6))
    scores, entropy = policy.score(OBSERVATIONS, mixed.trace, scored)
    for adapter, rows in (("lora", [0, 3]), ("bottleneck", [1, 4]), (None, [2, 5])):
        part = small.rows(OBSERVATIONS, rows)
        with bank.selected(adapter):
            alone = bank.policy.act(part, sampling, [generators(6)[row] for row in rows])
            alone_scores, alone_entropy = bank.policy.score(part, alone.trace, scored)
        assert torch.equal(mixed.trace[rows], alone.trace)
        assert torch.equal(mixed.logprobs[rows], alone.logprobs)
        assert (mixed.actions[rows] == alone.actions).all()
        assert torch.equal(scores[rows], alone_scores)
        assert torch.equal(entropy[rows], alone_entropy)
        for place, row in enumerate(rows):
            single = policy.act(small.rows(OBSERVATIONS, [row]), sampling, [generators(6)[row]])
            if architecture != "nano":  # its actions are continuous, of a range of 10
                np.testing.assert_allclose(single.actions[0], alone.actions[place], rtol=0, atol=1e-4)
            else:
                assert (single.actions == alone.actions[place]).all()
            torch.testing.assert_close(single.logprobs[0], alone.logprobs[place], rtol=0, atol=1e-5)


def test_routing_leaves_the_active_adapter_and_its_gradients_alone() -> None:
    bank = make_bank()
    bank.activate("lora", training=True)
    before, trainable = outputs(policy_of(bank)), bank.trainable_names()
    policy = RoutedPolicy(bank, TaskRouter.of(bank, base_for=[small.INSTRUCTIONS[2]]))
    policy.act(OBSERVATIONS, Sampling(), generators(6))
    assert (bank.active, bank.training, bank.trainable_names()) == ("lora", True, trainable)
    assert torch.equal(outputs(policy_of(bank)), before)


def test_decisions_of_one_adapter_keep_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    policy = RoutedPolicy(bank, TaskRouter.of(bank, base_for=[small.INSTRUCTIONS[2]]))
    alone = small.rows(OBSERVATIONS, [0, 1, 0, 2, 1])
    rows: list[int] = []
    act = bank.policy.act
    monkeypatch.setattr(
        bank.policy, "act", lambda batch, *arguments: (rows.append(len(batch)), act(batch, *arguments))[1]
    )
    sampling = Sampling(temperature=1.3)
    own, shared = (policy.act(batch, sampling, generators(5)) for batch in (alone, alone.distinct()))
    scores, _ = policy.score(alone.distinct(), own.trace, sampling)
    assert policy.shares_observations
    assert rows == [2, 2, 1, 1, 1, 1]
    assert torch.equal(own.trace, shared.trace)
    torch.testing.assert_close(scores, own.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("architecture", POLICIES)
def test_the_ratio_is_1_before_the_first_optimizer_step(architecture: str, kind: str) -> None:
    bank = make_bank(POLICIES[architecture]())
    bank.activate(kind, training=True)
    sampling = Sampling(temperature=1.6)
    sample = bank.policy.act(OBSERVATIONS, sampling, generators(6))
    scores, _ = bank.policy.score(OBSERVATIONS, sample.trace, sampling)
    # a diffusion head scores all denoising steps in one batch, which it sampled one by one; a flow head of other rows
    tolerance = 1e-4 if architecture in ("diffusion", "flow") else 0
    torch.testing.assert_close(scores.detach(), sample.logprobs, rtol=0, atol=tolerance)
    stats = update_by(Learner(bank.policy, TRAINING), [sampled_group(bank.policy)], 1)
    assert stats["ratio_min"] == pytest.approx(1, abs=1e-4)
    assert stats["ratio_max"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("architecture", POLICIES)
def test_every_parameter_of_an_adapter_is_part_of_what_the_policy_does(architecture: str, kind: str) -> None:
    bank = make_bank(POLICIES[architecture]())
    bank.activate(kind, training=True)
    torch.manual_seed(0)
    mask = torch.ones(6, 3, dtype=torch.bool)
    torch.autograd.backward(bank.policy.imitation_loss(OBSERVATIONS, torch.zeros(6, 3, 2), mask))
    for name, parameter in bank.parameters(kind).items():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_checkpointed_activations_give_the_same_gradients(kind: str) -> None:
    bank = make_bank()
    bank.activate(kind, training=True)
    trace = torch.randint(0, 256, (6, bank.policy.units), generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            bank.policy.checkpoint_activations()
        bank.policy.zero_grad()
        torch.autograd.backward(bank.policy.score(OBSERVATIONS, trace, Sampling())[0].sum())
        found.append({name: p.grad.clone() for name, p in bank.parameters(kind).items() if p.grad is not None})
    assert same(*found)
    assert found[0].keys() == bank.parameters(kind).keys()


def test_a_saved_policy_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    policy = policy_of(make_bank())
    saved = []
    for number in range(8):
        folder = tmp_path / str(number)
        policy.save(folder)
        saved.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert all(files == saved[0] for files in saved)
    assert len(saved[0]) > 4


def test_dropout_only_acts_in_training_mode() -> None:
    bank = make_bank(lora=AdapterConfig(rank=4, dropout=0.5))
    policy = policy_of(bank)
    bank.activate("lora", training=False)
    assert torch.equal(outputs(policy), outputs(policy))
    policy.train()
    assert not torch.equal(outputs(policy), outputs(policy))
