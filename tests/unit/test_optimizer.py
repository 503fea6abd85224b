"""Numbers of the optimizer: float32 masters under bfloat16 weights, moments of 8 bits, what a checkpoint brings back."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import made_openvla_checkpoint as made_openvla
import small_smolvla
import small_tinyvla as small
from fake_policy import FakePolicy
from sampled_episodes import observations, sampled_group, small_policy, update_by
from simplevla.adapters.load import load_policy
from simplevla.config import OptimizerConfig, SamplingConfig, SFTConfig, TrainConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.training.checkpoint import load_latest, save_checkpoint
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Decisions, Learner, pack
from simplevla.training.optimizer import MasterAdamW

SETTINGS = OptimizerConfig(lr=5e-6, weight_decay=0.01)
EIGHT = replace(SETTINGS, lr=1e-3, moments="8bit")

SAMPLING = SamplingConfig(temperature=1.6)
"""As `sampled_group` samples."""


def parameter(values: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return values.to(dtype).requires_grad_()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take_steps(optimizer: MasterAdamW, numbers: Iterable[int]) -> None:
    """Each with two micro-batches of random gradients that depend on its number alone."""
    for number in numbers:
        for micro in range(2):
            for i, p in enumerate(optimizer.parameters.values()):
                p.grad = 0.01 * random(*p.shape, seed=100 * number + 10 * micro + i).to(p.dtype)
            optimizer.collect_gradients()
        optimizer.step(optimizer.settings.lr)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_too_small_for_the_weight_s_precision_add_up(dtype: torch.dtype) -> None:
    start = parameter(torch.full((3,), 0.02), dtype)
    optimizer = MasterAdamW({"w": start}, replace(SETTINGS, weight_decay=0.0))
    before = start.detach().clone()
    for _ in range(40):
        start.grad = torch.ones_like(start)
        optimizer.collect_gradients()
        optimizer.step(5e-6)
    # AdamW's step along a constant gradient is lr: 40 * 5e-6 = 2e-4, about two of bfloat16's steps of 2**-13 here.
    assert (before - start.detach()).tolist() == pytest.approx([2e-4] * 3, abs=2**-14)
    assert (before - optimizer.masters["w"].detach()).tolist() == pytest.approx([2e-4] * 3, rel=1e-3)
    plain = torch.full((3,), 0.02, dtype=torch.bfloat16).requires_grad_()
    adamw = torch.optim.AdamW([plain], lr=5e-6, weight_decay=0.0)
    for _ in range(40):
        plain.grad = torch.ones_like(plain)
        adamw.step()
    assert torch.equal(plain, torch.full((3,), 0.02, dtype=torch.bfloat16)), "without masters nothing moves"


def test_gradients_of_many_micro_batches_add_up_in_float32() -> None:
    weight = parameter(torch.zeros(4))
    optimizer = MasterAdamW({"w": weight}, SETTINGS)
    parts = [torch.tensor([1.0, 0.001, -2.0, 0.003]).bfloat16()] + [
        (0.001 * random(4, seed=i)).bfloat16() for i in range(500)
    ]
    for part in parts:
        weight.grad = part.clone()
        optimizer.collect_gradients()
        assert weight.grad is None
    expected = np.sum([part.float().numpy() for part in parts], axis=0, dtype=np.float64)
    got = optimizer.masters["w"].grad
    assert got is not None
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-7)
    # The norm that is clipped is the sum's.
    assert optimizer.clip_gradients() == pytest.approx(float(np.linalg.norm(expected)), rel=1e-5)
    assert float(got.norm()) == pytest.approx(1.0, rel=1e-4)


def test_ten_steps_are_those_of_adamw_on_a_float32_copy() -> None:
    weights = {"w": parameter(0.02 * random(6, 5)), "b": parameter(0.02 * random(5, seed=1))}
    copies = {name: p.detach().double().requires_grad_() for name, p in weights.items()}
    optimizer = MasterAdamW(weights, replace(SETTINGS, lr=3e-5, weight_decay=0.1))
    reference = torch.optim.AdamW(copies.values(), lr=3e-5, weight_decay=0.1)
    for number in range(10):
        for i, name in enumerate(weights):
            gradients = [random(*weights[name].shape, seed=100 * number + 10 * m + i).bfloat16() for m in range(3)]
            copies[name].grad = torch.stack([g.double() for g in gradients]).sum(0)
            for gradient in gradients:
                weights[name].grad = gradient
                optimizer.collect_gradients()
        optimizer.step(3e-5)
        reference.step()
    for name, copy in copies.items():
        torch.testing.assert_close(optimizer.masters[name].detach().double(), copy.detach(), atol=1e-8, rtol=1e-6)
        assert torch.equal(weights[name], optimizer.masters[name].bfloat16())
        assert weights[name].dtype == torch.bfloat16


def test_a_float32_policy_s_update_is_torch_s_adamw_bit_for_bit() -> None:
    config = TrainConfig(
        sampling=SAMPLING, optimizer=OptimizerConfig(lr=0.01, weight_decay=0.1), minibatches=1, microbatch_decisions=3
    )
    policy, by_hand = small_policy(), small_policy()
    learner, seen = Learner(policy, config), Learner(by_hand, config)
    decayed, spared = {"params": [by_hand.linear.weight]}, {"params": [by_hand.linear.bias], "weight_decay": 0.0}
    reference = torch.optim.AdamW([decayed, spared], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for update in (1, 2):
        group = sampled_group(policy, update, [1, 0, 0, 1])
        batch = pack(group, advantages(group), policy.unit_action_index, "episode")
        update_by(learner, [group], update)
        seen.accumulate_gradients(batch, "here")
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        reference.step()
        for name, p in by_hand.named_parameters():
            assert torch.equal(policy.get_parameter(name), p), name
    assert not torch.equal(policy.linear.weight, small_policy().linear.weight)


def advantages(group: list[Any]) -> list[float]:
    """In float32, as torch has it."""
    rewards = torch.tensor([float(episode.reward) for episode in group])
    return ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()


def test_a_bfloat16_policy_s_update_is_adamw_of_the_summed_gradients() -> None:
    config = TrainConfig(
        sampling=SAMPLING, optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1), minibatches=1, microbatch_decisions=2
    )
    policy = half_policy()
    group = sampled_group(policy, 1, [1, 0, 0, 1])
    batch = pack(group, advantages(group), policy.unit_action_index, "episode")
    copies = {name: p.detach().float().requires_grad_() for name, p in policy.named_parameters()}
    for part in batch.split(2):
        for name, gradient in micro_gradients(half_policy(), part).items():
            copies[name].grad = gradient + (0 if copies[name].grad is None else copies[name].grad)
    norm = torch.cat([copy.grad.flatten() for copy in copies.values()]).norm()  # type: ignore[union-attr]
    for copy in copies.values():
        copy.grad *= min(1.0, 1.0 / float(norm))  # type: ignore[operator]
    decayed, spared = {"params": [copies["linear.weight"]]}, {"params": [copies["linear.bias"]], "weight_decay": 0.0}
    torch.optim.AdamW([decayed, spared], lr=1e-4, weight_decay=0.1).step()
    learner = Learner(policy, config)
    metrics = update_by(learner, [group], 1)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, copy in copies.items():
        torch.testing.assert_close(learner.optimizer.masters[name].detach(), copy.detach(), atol=1e-7, rtol=0)
        assert torch.equal(policy.get_parameter(name), learner.optimizer.masters[name].bfloat16())
    moved = {name: not torch.equal(policy.get_parameter(name), p) for name, p in half_policy().named_parameters()}
    assert all(moved.values())


class HalfPolicy(FakePolicy):
    """Its linear layer is bfloat16, what goes in and out float32."""

    def log_softmax(self, batch: Any, sampling: Any) -> Tensor:
        brightness = batch.images["front"].float().mean(dim=(1, 2, 3)) / 255
        features = torch.cat([batch.state[:, :2], brightness[:, None]], dim=1).bfloat16()
        logits = self.linear(features).float().view(len(batch), self.units, -1)
        return (logits / sampling.temperature).log_softmax(-1)


def half_policy() -> HalfPolicy:
    policy = HalfPolicy()
    return policy.bfloat16()


def micro_gradients(policy: HalfPolicy, part: Decisions) -> dict[str, Tensor]:
    """Of one micro-batch's loss at ratio 1, where the clipped loss's gradient is the plain policy gradient's."""
    logprobs, _ = policy.score(part.observations(), part.trace(), Sampling.of(SAMPLING))
    (-(part.weights * part.advantages[:, None] * (logprobs - part.old_logprobs).exp()).sum()).backward()
    return {name: p.grad.float() for name, p in policy.named_parameters() if p.grad is not None}


def test_imitation_steps_on_masters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = half_policy()
    with torch.no_grad():
        policy.linear.weight.fill_(0.02)
    config = SFTConfig(batches=100, schedule="constant", optimizer=OptimizerConfig(lr=5e-6, weight_decay=0.0))
    monkeypatch.setattr(policy, "imitation_loss", lambda *_: policy.linear.weight.sum())
    trainer = Imitator(policy, config)
    batch = ChunkBatch(
        observations=observations(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 3), np.float32)),
        actions=torch.zeros(1, 4, 2),
        mask=torch.ones(1, 4, dtype=torch.bool),
    )
    for number in range(40):
        trainer.update(batch, number)
    moved = 0.02 - policy.linear.weight.detach().float()
    np.testing.assert_allclose(moved.numpy(), 2e-4, atol=2**-14)


def mixed() -> dict[str, Tensor]:
    """Weights of which torchao quantises `large` and no other; `w` needs a master."""
    return {
        "w": parameter(0.02 * random(4, 3)),
        "large": parameter(0.02 * random(32, 256), torch.bfloat16),
        "wide": parameter(0.02 * random(64, 128, seed=2).t(), torch.float32),
        "b": parameter(random(5), torch.float32),
    }


@pytest.mark.parametrize("settings", [SETTINGS, EIGHT], ids=["float32", "8bit"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(settings: OptimizerConfig, tmp_path: Path) -> None:
    straight = MasterAdamW(mixed(), settings)
    take_steps(straight, range(5))
    save_checkpoint(tmp_path, 1, FakePolicy(), straight.state(), {}, keep=1)
    weights = {
        name: p.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for name, p in straight.parameters.items()
    }
    take_steps(straight, range(5, 10))
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    resumed = MasterAdamW(weights, settings)
    resumed.load_state(checkpoint.optimizer())
    take_steps(resumed, range(5, 10))
    expected, got = straight.state(), resumed.state()
    assert expected.keys() == got.keys()
    assert {key for key in got if key.startswith("master/")} == {"master/w", "master/large"}
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
    for name, p in straight.parameters.items():
        assert torch.equal(resumed.parameters[name], p), name
    names = {key.split("/")[0] for key in got if key.endswith("/large")}
    moments = {"exp_avg", "exp_avg_sq"}
    if settings.moments == "8bit":
        moments = {f"{moment}.{part}" for moment in moments for part in ("codes", "scale")}
        assert {got[f"exp_avg.codes/{name}"].dtype for name in ("large", "wide")} == {torch.uint8}
        assert got["exp_avg.scale/large"].shape == (32,)
    assert names == {"master", "step"} | moments
    # What was lost would be seen.
    forgetful = MasterAdamW(weights, settings)
    masters = {key: value for key, value in checkpoint.optimizer().items() if key.startswith("master/")}
    forgetful.load_state(masters)
    take_steps(forgetful, range(5, 10))
    assert not torch.equal(forgetful.masters["large"], straight.masters["large"])


def test_moments_of_8_bits_step_as_those_of_32_nearly_do() -> None:
    def after(settings: OptimizerConfig, count: int) -> MasterAdamW:
        weights = {"w": parameter(0.02 * random(16, 256))}
        optimizer = MasterAdamW(weights, settings)
        take_steps(optimizer, range(count))
        return optimizer

    start = after(EIGHT, 0).masters["w"].detach().clone()
    # The first step's formula doesn't look at quantised numbers yet.
    exact = replace(EIGHT, moments="float32")
    torch.testing.assert_close(after(EIGHT, 1).masters["w"], after(exact, 1).masters["w"], atol=1e-8, rtol=1e-6)
    rough, fine = (after(settings, 10).masters["w"].detach() - start for settings in (EIGHT, exact))
    assert float((rough - fine).norm() / fine.norm()) < 0.05
    assert not torch.equal(rough, fine)
    # The rate is that of the step, not that of the settings.
    slow = MasterAdamW({"w": parameter(0.02 * random(16, 256))}, replace(EIGHT, weight_decay=0.0))
    slow.parameters["w"].grad = torch.ones(16, 256, dtype=torch.bfloat16)
    slow.collect_gradients()
    slow.step(2e-5)
    assert slow.lr == pytest.approx(2e-5)
    torch.testing.assert_close(start - slow.masters["w"].detach(), torch.full_like(start, 2e-5), atol=1e-8, rtol=0)
    # A code is a value of the map between -1 and 1, times the block's largest moment.
    state = after(EIGHT, 3).state()
    scale = state["exp_avg.scale/w"]
    assert scale.tolist() == pytest.approx(after(exact, 3).state()["exp_avg/w"].abs().amax(1).tolist(), rel=0.02)


def _without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("master/w"), r"no float32 master of 'w', which is torch.bfloat16 in this policy"),
        (lambda state: {**state, "master/b": torch.zeros(5)}, r"a float32 master of 'b', which is torch.float32"),
        (lambda state: {**state, "master/w": torch.zeros(3, 4)}, r"'w' with shape \(3, 4\); expected \(4, 3\)"),
        (lambda state: {**state, "exp_avg/w": torch.zeros(7)}, r"'w' with shape \(7,\); expected \(4, 3\)"),
        (lambda state: {**state, "master/other": torch.zeros(7)}, r"'other', which isn't a trainable parameter"),
        (
            lambda state: {**state, "exp_avg.codes/large": torch.zeros(32, 256, dtype=torch.uint8)},
            r"'exp_avg.codes' of 'large', a moment of 8 bits; optimizer.moments is float32",
        ),
        (
            lambda state: {**state, "exp_avg.scale/large": torch.zeros(31)},
            r"'large' with shape \(31,\); expected \(32,\)",
        ),
    ],
)
def test_another_policy_s_state_is_refused_and_nothing_changes(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    optimizer = MasterAdamW(mixed(), SETTINGS)
    take_steps(optimizer, range(1))
    state = optimizer.state()
    other = MasterAdamW(mixed(), SETTINGS)
    with pytest.raises(ValueError, match=message):
        other.load_state(change(state))
    assert torch.equal(other.masters["w"].bfloat16(), mixed()["w"])
    assert not other.adamw.state


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r"optimizer.moments is 8bit.*pip install 'simplevla\[eightbit\]'"):
        MasterAdamW(mixed(), EIGHT)


def embeddings(policy: Policy) -> set[str]:
    """Names of parameters that are looked up or added to what is looked up."""
    tables = {f"{name}.weight" for name, module in policy.named_modules() if isinstance(module, torch.nn.Embedding)}
    alone = ("position_embeddings", "cls_token", "register_tokens")
    return tables | {name for name, _ in policy.named_parameters() if name.endswith(alone)}


def test_no_embedding_decays(tmp_path: Path) -> None:
    made_openvla.write(tmp_path / "published", made_openvla.tensors())
    import_openvla_oft(tmp_path / "published", tmp_path / "policy", cameras=("fixed",))
    policies = [small.make(), small.make("siglip_test"), small_smolvla.make(), load_policy(tmp_path / "policy")]
    for policy in policies:
        assert embeddings(policy) <= policy.spared_from_decay()
    assert [len(embeddings(policy)) for policy in policies] == [1, 2, 2, 5]
