"""The SFT update: micro-batches, precision, what is recomputed, what is trained, and when no step is taken."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import small_tinyvla as small
from adapted_tinyvla import disturb
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.config import Head, OptimizerConfig, SFTConfig
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy
from simplevla.training import imitator as room
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitation import validation_metrics
from simplevla.training.imitator import Imitator

CONFIG = SFTConfig(
    batches=12, batch_size=6, optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01, warmup_steps=5, max_grad_norm=1e9)
)
ENDS = (3, 1, 2, 3, 1, 1)
"""Valid actions of the chunks."""


def batch(seed: int = 0) -> ChunkBatch:
    """Six chunks for `small_tinyvla`, some of which end early."""
    rng = np.random.default_rng((7, seed))
    instructions = [small.INSTRUCTIONS[i % 3] for i in range(len(ENDS))]
    return ChunkBatch(
        observations=small.observations(instructions, seed),
        actions=torch.from_numpy(rng.uniform(-1, 1, (len(ENDS), 3, 2)).astype(np.float32)),
        mask=torch.arange(3) < torch.tensor(ENDS)[:, None],
    )


def along(policy: Policy, config: SFTConfig, loss: Callable[[], Tensor], number: int = 0) -> dict[str, float]:
    """One update by another loss."""
    policy.imitation_loss = lambda *_: loss()  # type: ignore[method-assign]
    return Imitator(policy, config).update(batch(), number)


def updated(policy: Policy, config: SFTConfig, numbers: range = range(3)) -> tuple[list[dict[str, float]], Imitator]:
    trainer = Imitator(policy, config)
    return [trainer.update(batch(number), number) for number in numbers], trainer


def gradients(policy: Policy, config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Gradients of the first update, by name."""
    seen: dict[str, Tensor] = {}
    trainer = Imitator(policy, config)

    def look(lr: float) -> None:
        seen.update({name: master.grad.clone() for name, master in trainer.optimizer.masters.items()})  # type: ignore[union-attr]
        trainer.optimizer.zero_grad()

    monkeypatch.setattr(trainer.optimizer, "step", look)
    trainer.update(batch(), 0)
    return seen


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_an_adapter_drops_out_while_it_imitates_and_only_then(kind: Literal["lora", "bottleneck"]) -> None:
    def losses(dropout: float) -> list[float]:
        policy = small.make()
        bank = AdapterBank(policy)
        bank.add("lift", AdapterConfig(kind=kind, rank=4, dropout=dropout))
        disturb(bank, "lift", seed=1)
        bank.activate("lift", training=True)
        stats, _ = updated(policy, CONFIG, range(1))
        again = [validation_metrics(policy, CONFIG, [batch(9)])["validation_loss"] for _ in range(2)]
        assert again[0] == again[1]
        assert not any(module.training for module in policy.modules())
        repeated, _ = updated(policy, CONFIG, range(1))
        return [stats[0]["loss"], repeated[0]["loss"]]

    without, dropped = losses(0.0), losses(0.5)
    assert abs(without[0] - dropped[0]) > 1e-5
    # By the number of the batch, so that a resumed run drops the same.
    assert losses(0.5) == dropped


def test_the_largest_seed_is_one() -> None:
    (stats,), _ = updated(small.make(), replace(CONFIG, seed=2**63 - 1), range(1))
    assert math.isfinite(stats["loss"])


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_add_up_to_the_batch(size: int, head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of micro-batches' means would weigh a chunk of one valid action like one of three."""
    calls: list[int] = []
    policy = small.make(head=head)
    loss = policy.imitation_loss

    def counted(seen: ObservationBatch, *rest: Tensor, **noise: Tensor) -> Tensor:
        calls.append(len(seen))
        return loss(seen, *rest, **noise)

    whole, _ = updated(small.make(head=head), CONFIG, range(1))
    expected = gradients(small.make(head=head), CONFIG, monkeypatch)
    policy.imitation_loss = counted  # type: ignore[method-assign]
    parts = gradients(policy, replace(CONFIG, microbatch_size=size), monkeypatch)
    assert calls == {1: [1] * 6, 4: [4, 2]}[size]
    for name, gradient in expected.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    stats, _trainer = updated(policy, replace(CONFIG, microbatch_size=size), range(1))
    assert stats[0] == pytest.approx(whole[0], rel=1e-5)
    held_out = [validation_metrics(policy, replace(CONFIG, microbatch_size=n), [batch(9)]) for n in (0, size)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)


def test_the_loss_is_that_of_the_policy_bit_for_bit() -> None:
    """The default is one forward-backward of the whole batch, after a seed of (seed, number)."""
    policy = small.make(head="diffusion")
    mine = batch()
    torch.manual_seed(1_000_003 * 4 + 2)
    expected = float(policy.imitation_loss(mine.observations, mine.actions, mine.mask).detach())
    assert Imitator(policy, replace(CONFIG, seed=4)).update(mine, 2)["loss"] == expected


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_recomputed_activations_give_equal_gradients(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(small.make(head=head), CONFIG, monkeypatch)
    policy = small.make(head=head)
    passes: list[int] = []
    policy.language.layers[0].mlp.dense_h_to_4h.register_forward_pre_hook(lambda *_: passes.append(1))
    got = gradients(policy, replace(CONFIG, gradient_checkpointing=True), monkeypatch)
    assert len(passes) == 2, "forward, and again backward"
    assert not any(module.training for module in policy.modules())
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(head: Head) -> None:
    """A step of 5e-6 on a weight of bfloat16 would mostly be lost."""
    config = replace(
        CONFIG, precision="bfloat16", schedule="constant", optimizer=OptimizerConfig(lr=5e-6, weight_decay=0.0)
    )
    policy, exact = small.make(head=head), small.make(head=head)
    seen: set[torch.dtype] = set()
    dense = policy.language.layers[0].mlp.dense_h_to_4h
    dense.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    before = dense.weight.detach().clone()
    stats, trainer = updated(policy, config, range(4))
    losses, _ = updated(exact, replace(config, precision="float32"), range(4))
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {value.dtype for value in trainer.optimizer_state().values()} == {torch.float32}
    moved = (dense.weight.detach() - before).abs()
    assert float(moved.median()) > 1e-6
    assert [row["loss"] for row in stats] == pytest.approx([row["loss"] for row in losses], rel=0.02)
    assert [row["loss"] for row in stats] != [row["loss"] for row in losses]


def test_bfloat16_learns() -> None:
    policy = small.make()
    config = replace(CONFIG, batches=20, precision="bfloat16", schedule="constant")
    trainer, mine = Imitator(policy, config), batch()
    losses = [trainer.update(mine, number)["loss"] for number in range(20)]
    # Nothing learned is ln 256 = 5.55 nats.
    assert losses[0] > 5
    assert losses[-1] < 3.5


def test_a_device_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ignored:
        """As torch's autocast does where it can't, with a warning."""

        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(room.torch, "autocast", Ignored)
    with pytest.raises(UserError, match=r"precision is bfloat16, which cpu doesn't compute in \(products are .*32\)"):
        Imitator(small.make(), replace(CONFIG, precision="bfloat16"))

    def none(*_: Any, **__: Any) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type\nsee above")

    monkeypatch.setattr(room.torch, "autocast", none)
    with pytest.raises(UserError, match=r"which cpu doesn't compute in \(User specified .* device_type\); leave it"):
        Imitator(small.make(), replace(CONFIG, precision="bfloat16"))


def test_what_a_policy_can_not_do_is_said_before_the_first_batch() -> None:
    class Plain(type(small.make())):  # type: ignore[misc]
        checkpoint_activations = Policy.checkpoint_activations

    policy = small.make()
    policy.__class__ = Plain
    with pytest.raises(UserError, match="has no gradient checkpointing; leave gradient_checkpointing off"):
        Imitator(policy, replace(CONFIG, gradient_checkpointing=True))
    with pytest.raises(UserError, match="no parameter that requires a gradient"):
        Imitator(small.make().requires_grad_(False), CONFIG)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda total: total * math.nan, "the loss is nan in batch 3; this step was not taken"),
        # Zero, with a gradient of 0 times infinity.
        (lambda total: (total * 0).sqrt(), "the gradient norm is nan in batch 3; this step was not taken"),
    ],
)
def test_what_is_not_finite_is_refused_before_the_step(loss: Callable[[Tensor], Tensor], message: str) -> None:
    policy = small.make()
    before = policy.queries.detach().clone()
    with pytest.raises(UserError, match=message):
        along(policy, CONFIG, lambda: loss(policy.queries.sum()), 2)
    assert torch.equal(policy.queries, before)
    assert policy.queries.grad is None


@pytest.mark.parametrize(
    ("schedule", "number", "expected"),
    [
        ("cosine", 0, 0.2 * 1.0),
        ("cosine", 4, 1.0 * 0.5 * (1 + math.cos(math.pi * 4 / 12))),
        ("cosine", 6, 0.5),
        ("cosine", 11, 0.5 * (1 + math.cos(math.pi * 11 / 12))),
        ("constant", 1, 0.4),
        ("constant", 11, 1.0),
    ],
)
def test_learning_rate(schedule: str, number: int, expected: float) -> None:
    policy = small.make()
    config = replace(CONFIG, schedule=schedule)  # type: ignore[arg-type]
    assert along(policy, config, lambda: policy.queries.sum(), number)["lr"] == pytest.approx(2e-3 * expected)


def test_weight_decay_acts_on_matrices_only() -> None:
    policy = small.make()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    config = replace(CONFIG, optimizer=OptimizerConfig(lr=0.1, weight_decay=0.5))
    along(policy, config, lambda: sum((p.sum() * 0 for p in policy.parameters()), torch.zeros(())))
    shrunk = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"state.weight", "language.layers.0.mlp.dense_h_to_4h.weight", "vision.encoders.0.maps.weight"} <= shrunk
    spared = ("bias", "norm.weight", "layernorm.weight", "embed_in.weight", "queries", "order", "sharpness")
    assert {name for name in shrunk if name.endswith(spared)} == set()
    ratio = policy.state.weight.detach() / before["state.weight"]
    assert ratio.flatten().tolist() == pytest.approx([1 - 0.1 * 0.5] * ratio.numel(), abs=1e-5)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small.make()
    trainer = Imitator(policy, replace(CONFIG, optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=0.25)))
    norms: list[float] = []

    def look(lr: float) -> None:
        norms.append(float(torch.linalg.vector_norm(policy.queries.grad)))  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.optimizer, "step", look)
    # The gradient of 3 q0 + 4 q1 has norm 5.
    policy.imitation_loss = lambda *_: 3 * policy.queries[0, 0] + 4 * policy.queries[0, 1]  # type: ignore[method-assign]
    assert trainer.update(batch(), 0)["grad_norm"] == pytest.approx(5.0)
    assert norms == [pytest.approx(0.25, rel=1e-4)]
