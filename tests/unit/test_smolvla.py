"""SmolVLA: who sees whom, positions, the prefix that is computed once, and what trains."""

import math
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import small_smolvla as small
from adapted_tinyvla import disturb
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.config import DenoisingConfig, LossConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.policies.smolvla.layers import ROPE_BASE, rotary, time_embedding
from simplevla.policies.smolvla.pixels import prepare_pixels
from simplevla.policies.smolvla.policy import Context, SmolVLA
from simplevla.policies.smolvla.prompt import PromptTokens
from small_tinyvla import observations, rows, statistics

LONG, SHORT = "push the blue block to the left zone", "press it"


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def noisy(policy: SmolVLA, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(count, *policy.head.shape, generator=drawn), torch.rand(count, generator=drawn)


def velocity(policy: SmolVLA, batch: ObservationBatch, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy.velocity(policy(batch), x, t)


def changed(before: torch.Tensor, after: torch.Tensor) -> list[bool]:
    """Which actions of the first row moved."""
    return [bool(x) for x in ((before - after).abs() > 1e-6).any(dim=2)[0]]


def test_an_action_sees_itself_and_those_before_it() -> None:
    policy, batch = small.make(), observations([LONG])
    x, t = noisy(policy, 1)
    before = velocity(policy, batch, x, t)
    for number in range(4):
        other = x.clone()
        other[0, number] += 1
        assert changed(before, velocity(policy, batch, other, t)) == [i >= number for i in range(4)]


def test_the_crossing_layers_see_no_action() -> None:
    policy, batch = small.make(self_attention_every=0), observations([LONG])
    x, t = noisy(policy, 1)
    other = x.clone()
    other[0, 1] += 1
    moved = changed(velocity(policy, batch, x, t), velocity(policy, batch, other, t))
    assert moved == [False, True, False, False]


def test_pictures_and_words_do_not_see_the_state_and_the_actions_do() -> None:
    policy, batch = small.make(), observations([LONG])
    other = ObservationBatch(images=batch.images, state=batch.state + 1, instructions=batch.instructions)
    with torch.no_grad():
        one, two = policy(batch), policy(other)
    for before, after in zip(one.reads, two.reads, strict=True):
        assert torch.equal(before.keys[:, :, :-1], after.keys[:, :, :-1])
        assert not torch.equal(before.keys[:, :, -1], after.keys[:, :, -1])
    x, t = noisy(policy, 1)
    assert all(changed(velocity(policy, batch, x, t), velocity(policy, other, x, t)))


def test_words_see_what_comes_after_them() -> None:
    policy = small.make()
    one, two = (policy(observations([text])) for text in ("lift the red", "lift the blue"))
    # The pictures' tokens are the same; the words behind them differ.
    assert not torch.allclose(one.reads[1].keys[:, :, 0], two.reads[1].keys[:, :, 0])


@pytest.mark.parametrize("special", [False, True])
def test_the_prefix_computed_apart_is_the_whole_sequence_at_once(special: bool) -> None:
    policy = small.make(image_special_tokens=special)
    batch = observations([LONG, SHORT])
    with torch.no_grad():
        context = policy(batch)
        tokens, valid = policy._pictures_and_words(batch)
        state = (batch.state - policy.state_mean) / (policy.state_std + 1e-8)
        state = policy.state_proj(torch.nn.functional.pad(state, (0, 2)))[:, None]
        hidden = torch.cat([tokens, state], dim=1)
        valid = torch.cat([valid, valid.new_ones(2, 1)], dim=1)
        turned = rotary(valid.cumsum(dim=1) - 1, 8)
        mask = valid[:, None, None].expand(-1, 1, valid.shape[1], -1).clone()
        mask[:, :, :-1, -1] = False
        for layer, read in zip(policy.language.layers, context.reads, strict=True):
            hidden, whole = layer(hidden, turned, mask)
            for got, expected in zip(read, whole, strict=True):
                kept = valid[:, None, :, None]
                torch.testing.assert_close(got * kept, expected * kept, atol=1e-5, rtol=1e-4)


def test_padding_moves_nothing() -> None:
    policy = small.make()
    batch = observations([SHORT, LONG, LONG])
    x, t = noisy(policy, 3)
    together = velocity(policy, batch, x, t)
    for i in range(3):
        alone = velocity(policy, rows(batch, [i]), x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=2e-5, rtol=1e-4)


def test_positions_count_valid_tokens_alone() -> None:
    policy = small.make()
    x, t = noisy(policy, 1)
    context = policy(observations([SHORT]))
    padded = Context(
        tuple(type(r)(*(torch.cat([y, torch.full_like(y[:, :, :3], 9.0)], dim=2) for y in r)) for r in context.reads),
        torch.cat([context.valid, torch.zeros(1, 3, dtype=torch.bool)], dim=1),
    )
    with torch.no_grad():
        one, two = (policy.velocity(c, x, t) for c in (context, padded))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_the_backbone_runs_once_per_decision() -> None:
    policy, count = small.make(), [0, 0]
    policy.vision.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    policy.expert.layers[0].register_forward_hook(lambda *_: count.__setitem__(1, count[1] + 1))
    policy.act(observations([LONG, SHORT]), Sampling(), generators(2))
    assert count == [1, policy.config.steps]


def test_an_update_passes_backbone_and_expert_once() -> None:
    policy, count = small.make(), [0, 0]
    batch = observations([LONG, SHORT])
    trace = policy.act(batch, Sampling(), generators(2)).trace
    policy.vision.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    policy.expert.layers[0].register_forward_hook(lambda *_: count.__setitem__(1, count[1] + 1))
    policy.train().score(batch, trace, Sampling())
    assert count == [1, 1]


@pytest.mark.parametrize("flow", ["sde", "noise"])
def test_log_probabilities_in_bfloat16_are_those_of_the_rollout(flow: Literal["sde", "noise"]) -> None:
    policy, batch = small.make(), observations([LONG, SHORT, SHORT])
    policy.prepare_for_rl(TrainConfig(precision="bfloat16", denoising=DenoisingConfig(flow=flow)))
    seen = set()
    policy.expert.layers[0].self_attn.o_proj.register_forward_hook(lambda *given: seen.add(given[-1].dtype))
    sample = policy.act(batch, Sampling(), generators(3))
    logprobs, _ = policy.train().score(batch, sample.trace, Sampling())
    assert seen == {torch.bfloat16}
    assert logprobs.dtype == sample.logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-4, rtol=0)
    exact = policy.train()
    exact.compute_in("float32")
    assert not torch.equal(exact.score(batch, sample.trace, Sampling())[0], logprobs)


def test_a_trace_is_scored_as_it_was_drawn_in_any_batch() -> None:
    policy = small.make()
    batch = observations([LONG, SHORT, SHORT])
    sample = policy.act(batch, Sampling(), generators(3))
    logprobs, _ = policy.train().score(batch, sample.trace, Sampling())
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-4, rtol=0)
    for i in range(3):
        alone, _ = policy.score(rows(batch, [i]), sample.trace[i : i + 1], Sampling())
        torch.testing.assert_close(alone[0].detach(), sample.logprobs[i], atol=1e-3, rtol=0)
    assert sample.logprobs.shape == (3, policy.units) == (3, 6)
    assert sample.actions.shape == (3, 3, 2)


def test_decisions_share_an_observation() -> None:
    policy = small.make()
    alone = rows(observations([LONG, SHORT]), [0, 1, 0])
    shared = alone.distinct()
    assert len(shared) == 2
    samples = [policy.act(batch, Sampling(), generators(3)) for batch in (alone, shared)]
    np.testing.assert_allclose(samples[0].actions, samples[1].actions, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("frozen", "layers"), [(False, 4), (False, 2), (True, 4)])
def test_exactly_what_trains_gets_a_gradient(frozen: bool, layers: int, checkpointing: bool) -> None:
    policy = small.make(frozen_backbone=frozen, expert_layers=layers, self_attention_every=2 if layers == 4 else 0)
    if checkpointing:
        policy.checkpoint_activations()
    batch = observations([LONG, SHORT])
    policy.imitation_loss(batch, torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)).backward()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == trained
    backbone = ("vision.", "connector.", "language.")
    assert any(name.startswith(backbone) for name in trained) is not frozen
    assert any(name.startswith("expert.") for name in trained)
    assert "state_proj.weight" in trained


def test_an_adapter_trains_on_expert_and_backbone_and_is_saved(tmp_path: Path) -> None:
    policy, batch = small.make(), observations([LONG, SHORT])
    bank = AdapterBank(policy)
    bank.add("task", AdapterConfig(rank=2, alpha=2.0))
    bank.activate("task", training=True)
    disturb(bank, "task", 0)
    sample = policy.act(batch, Sampling(), generators(2))
    policy.score(batch, sample.trace, Sampling())[0].sum().backward()
    lacking = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert {name.split(".")[0] for name in bank.trainable_names()} >= {"vision", "connector", "language", "expert"}
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy").act(batch, Sampling(), generators(2))
    np.testing.assert_array_equal(again.actions, sample.actions)


def test_a_saved_policy_comes_back_bit_for_bit_and_frozen(tmp_path: Path) -> None:
    policy, batch = small.make(), observations([LONG])
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    names = [{name for name, p in each.named_parameters() if p.requires_grad} for each in (policy, loaded)]
    assert names[0] == names[1]
    assert not any(parameter.data_ptr() % 64 for parameter in loaded.parameters()), (
        "sums would differ in the last digit"
    )
    actions = [each.act(batch, Sampling(greedy=True), generators(1)).actions for each in (policy, loaded)]
    np.testing.assert_array_equal(*actions)


def test_flow_noise_trains_its_spread() -> None:
    policy, batch = small.make(), observations([LONG, SHORT])
    policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(flow="noise"), loss=LossConfig()))
    sample = policy.act(batch, Sampling(), generators(2))
    logprobs, _ = policy.score(batch, sample.trace, Sampling())
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-3, rtol=0)
    logprobs.sum().backward()
    assert policy.head.spread.grad is not None


def test_the_loss_is_of_real_dimensions_and_steps() -> None:
    policy, batch = small.make(), observations([LONG, SHORT])
    actions, mask = torch.randn(2, 4, 2), torch.tensor([[True] * 4, [True, True, False, False]])
    noise = policy.imitation_noise(2)
    loss = policy.imitation_loss(batch, actions, mask, **noise)
    other = actions.clone()
    other[1, 3] += 5
    # What comes after the end changes nothing that is counted: an action sees none after it.
    torch.testing.assert_close(policy.imitation_loss(batch, other, mask, **noise), loss)
    other[1, 1] += 5
    assert not torch.allclose(policy.imitation_loss(batch, other, mask, **noise), loss)


def test_several_noises_share_a_pass_of_the_backbone() -> None:
    one, three = small.make(), small.make(noise_samples=3)
    batch, actions, mask = observations([LONG, SHORT]), torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)
    noise = three.imitation_noise(2)
    each = [
        one.imitation_loss(batch, actions, mask, **{name: x[:, i : i + 1] for name, x in noise.items()})
        for i in range(3)
    ]
    torch.testing.assert_close(three.imitation_loss(batch, actions, mask, **noise), torch.stack(each).mean())


def test_pictures_keep_their_aspect_with_bars_on_the_left_and_top() -> None:
    wide = torch.full((1, 8, 16, 3), 255, dtype=torch.uint8)
    made = prepare_pixels(wide, 32)
    assert made.shape == (1, 3, 32, 32)
    assert torch.equal(made[:, :, :16], -torch.ones(1, 3, 16, 32))
    assert torch.equal(made[:, :, 16:], torch.ones(1, 3, 16, 32))
    tall = prepare_pixels(wide.transpose(1, 2), 32)
    assert torch.equal(tall[..., :16], -torch.ones(1, 3, 32, 16))


def test_rotary_positions_and_times() -> None:
    cos, sin = rotary(torch.tensor([[0, 3]]), 4)
    angles = [3.0, 3.0 / ROPE_BASE**0.5]
    torch.testing.assert_close(cos[0, 1], torch.tensor([math.cos(x) for x in angles] * 2))
    torch.testing.assert_close(sin[0, 1], torch.tensor([math.sin(x) for x in angles] * 2))
    made = time_embedding(torch.tensor([0.5]), 6, 4e-3, 4.0)
    periods = [4e-3, 4e-3 * 1000**0.5, 4.0]
    expected = [f(2 * math.pi * 0.5 / p) for f in (math.sin, math.cos) for p in periods]
    torch.testing.assert_close(made[0], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_instruction_ends_with_a_line_break_and_is_cut_off_with_a_warning() -> None:
    tokenizer = small.make().prompts.tokenizer
    tokens = PromptTokens(tokenizer, 50)
    assert tokens.ids("press it") == tokenizer.encode("press it\n").ids == tokens.ids("press it\n")
    short = PromptTokens(tokenizer, 2)
    with pytest.warns(UserWarning, match="reads the first 2"):
        assert short.ids("press it") == tokens.ids("press it")[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short.ids("press it")
    with pytest.raises(UserError, match="expected what to do in words"):
        tokens.ids(" ")


def test_nano_is_small_and_all_of_it_trains_but_what_no_action_depends_on() -> None:
    made = SmolVLA.create(
        "smolvla_nano",
        cameras=("front", "wrist"),
        state_dim=3,
        action_dim=2,
        chunk_length=5,
        instructions=[LONG, SHORT],
        statistics=statistics(),
    )
    assert 1e6 < sum(p.numel() for p in made.parameters()) < 1.6e6
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert all(name.startswith(("language.layers.3.", "language.norm.")) for name in frozen)
    assert made.chunk_length == made.imitated_length == 5
    assert float(made.state_std.min()) >= 1e-3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"chunk_length": 5}, r"n_action_steps\) is 5; expected at most 4"),
        ({"state_dim": 6}, "state_dim is 6; expected at most 5"),
        ({"image_size": 40}, "image_size is 40; expected a multiple of 16"),
        ({"expert_layers": 2}, "some with joint attention"),
        ({"features": ("observation.images.image",)}, "expected one each"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        small.make(**changes)
