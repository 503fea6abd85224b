from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights

import small_tinyvla as small
from simplevla.policies.base import Sampling
from simplevla.policies.tinyvla.config import TinyVLAConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.presets import make_preset
from simplevla.policies.tinyvla.tokens import InstructionTokens
from simplevla.policies.words import train_tokenizer


def test_known_words_are_one_token_and_unknown_text_survives_as_bytes() -> None:
    tokenizer = train_tokenizer(small.INSTRUCTIONS, 512)
    tokens = InstructionTokens(tokenizer, 64)
    assert len(tokens.ids("push the blue block to the left zone")) == 8
    assert tokens.ids("Lift the RED block") == tokens.ids("lift the red block")
    strange = "schiebe den würfel 🤖"
    assert tokenizer.decode(tokens.ids(strange)).strip() == strange
    assert len(tokens.ids(strange)) > 15


def test_the_tokenizer_depends_on_the_set_of_instructions_only() -> None:
    again = train_tokenizer([*reversed(small.INSTRUCTIONS), small.INSTRUCTIONS[0]], 512)
    assert again.to_str() == train_tokenizer(small.INSTRUCTIONS, 512).to_str()


def test_instructions_are_padded_on_the_right_to_the_longest() -> None:
    tokens = InstructionTokens(train_tokenizer(small.INSTRUCTIONS, 512), 64)
    ids, valid = tokens.batch(["press it", "lift the red block"])
    assert ids.shape == (2, 4)
    assert valid.tolist() == [[True, True, False, False], [True] * 4]
    assert ids[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("instruction", ["", "x" * 65])
def test_an_instruction_of_no_or_too_many_tokens_is_refused(instruction: str) -> None:
    tokens = InstructionTokens(train_tokenizer(small.INSTRUCTIONS, 512), 64)
    with pytest.raises(ValueError, match=r"takes 1 to 64"):
        tokens.ids(instruction)


def test_units_belong_to_the_actions_in_order() -> None:
    policy = small.make()
    assert policy.units == 6
    assert policy.unit_action_index.tolist() == [0, 0, 1, 1, 2, 2]


def test_tokens_become_actions_in_the_environments_units() -> None:
    # Dimension 0 runs from -1 to 1, dimension 1 from 0 to 10; bin 0 is the lowest, bin 255 the highest.
    policy = small.make()
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 255, 255, 0, 51]]), 256).float()
    actions = policy.in_environment_units(policy.head.sample(logits, Sampling(greedy=True), []).normalised)
    assert actions.shape == (1, 3, 2)
    assert actions[0].flatten().tolist() == pytest.approx([-1, 0, 1, 10, -1, 2], abs=1e-5)


def test_the_state_is_normalised_with_a_floor_under_the_std() -> None:
    policy = small.make()
    # std 0.1 and 2 stay; std 0 counts as 0.001, so that a constant dimension can't explode.
    assert policy.state_mean.tolist() == pytest.approx([0.5, 0.0, -1.0])
    assert (1 / policy.state_scale).tolist() == pytest.approx([0.1, 2.0, 0.001])


def test_attention_of_the_queries_is_bidirectional_and_the_prefix_does_not_see_them() -> None:
    """A causal mask runs as well and behaves badly (moojink/openvla-oft, issue 135).

    So change the last query and look at the first.
    """
    policy = small.make()
    batch = small.observations(["press it"])
    between: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    policy.language.layers[0].register_forward_hook(lambda _m, _i, output: between.append(output))
    policy.language.register_forward_hook(lambda _m, _i, output: read.append(output.last_hidden_state))
    with torch.no_grad():
        policy(batch)
        policy.queries[-1] += torch.randn(128, generator=torch.Generator().manual_seed(0))
        policy(batch)
    change = (between[1] - between[0]).abs().amax(dim=-1)[0]
    assert change[: -policy.units].max() == 0
    assert change[-policy.units :].min() > 1e-4
    assert read[0].shape[1] == policy.units, "of the last layer only what is read"
    assert (read[1] - read[0]).abs().amax(dim=-1).min() > 1e-4


def test_every_query_sees_every_token_of_the_prefix() -> None:
    policy = small.make()
    captured: list[torch.Tensor] = []
    policy.language.register_forward_pre_hook(
        lambda _m, _args, kwargs: captured.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        policy(small.observations(["press it", "lift the red block"]))
    # 2 views, 1 state, 4 words (2 of them padding in the first row), 6 queries.
    visible = captured[0][:, 0] == 0
    assert visible.shape == (2, 13, 13)
    assert visible[0, 7:].all(dim=0).tolist() == [True] * 5 + [False] * 2 + [True] * 6
    assert visible[0, :7].any(dim=0).tolist() == [True] * 5 + [False] * 8
    assert visible[1, 7:].all()
    assert not visible[1, :7, 7:].any()


def test_the_instruction_its_word_order_the_images_and_the_state_all_reach_the_actions() -> None:
    policy = small.make()
    batch = small.observations(["lift the red block", "red the lift block", "press it"])
    same = small.rows(batch, [0, 0, 0])
    with torch.no_grad():
        base = policy(same)[0]
        words = policy(type(same)(images=same.images, state=same.state, instructions=batch.instructions))
        front = policy(type(same)(images={**same.images, "front": batch.images["front"]}, state=same.state,
                                  instructions=same.instructions))  # fmt: skip
        wrist = policy(type(same)(images={**same.images, "wrist": batch.images["wrist"]}, state=same.state,
                                  instructions=same.instructions))  # fmt: skip
        state = policy(type(same)(images=same.images, state=batch.state, instructions=same.instructions))
    for name, changed in {"words": words, "front": front, "wrist": wrist, "state": state}.items():
        for row in (1, 2):
            assert (changed[row] - base).abs().max() > 1e-4, (name, row)


def test_greedy_takes_the_most_likely_bin_and_needs_no_generator() -> None:
    policy = small.make()
    batch = small.observations(["press it"])
    with torch.no_grad():
        logits = policy(batch)
    sample = policy.act(batch, Sampling(greedy=True), [])
    assert torch.equal(sample.trace, logits.argmax(dim=-1))
    assert sample.actions.dtype == np.float32
    normalised = sample.trace.float().unflatten(1, (3, 2)) * 2 / 255 - 1
    np.testing.assert_allclose(sample.actions, policy.in_environment_units(normalised).numpy(), atol=1e-6)


def test_logprobs_are_of_the_tempered_distribution() -> None:
    policy = small.make()
    batch = small.observations(["press it"])
    with torch.no_grad():
        logits = policy(batch)
    sample = policy.act(batch, Sampling(temperature=1.6), [np.random.default_rng(0)])
    probabilities = np.exp(logits.double().numpy() / 1.6)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    for unit in range(6):
        expected = np.log(probabilities[0, unit, sample.trace[0, unit]])
        assert float(sample.logprobs[0, unit]) == pytest.approx(expected, abs=1e-5)
    scored, entropy = policy.score(batch, sample.trace, Sampling(temperature=1.6))
    expected_entropy = -(probabilities * np.log(probabilities)).sum(axis=-1)
    np.testing.assert_allclose(entropy.detach().numpy(), expected_entropy, atol=1e-4)
    assert scored.requires_grad


def test_imitation_loss_is_over_valid_actions_only() -> None:
    policy = small.make()
    batch = small.observations(["press it", "lift the red block"])
    actions = torch.tensor([[[0.1, 3.1], [0.5, 7.2], [9.0, 9.0]], [[-0.3, 0.8], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = policy.imitation_loss(batch, actions, mask)
    with torch.no_grad():
        logprobs = torch.log_softmax(policy(batch).double(), dim=-1).numpy()
    # Normalised: (a - 0) / 1 and (a - 5) / 5; bin = round((x + 1) * 127.5).
    bins = {(0, 0): 140, (0, 1): 79, (0, 2): 191, (0, 3): 184, (1, 0): 89, (1, 1): 20}
    expected = -np.mean([logprobs[b, u, k] for (b, u), k in bins.items()])
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)


def test_create_with_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = small.make(seed=3)
    assert torch.equal(torch.rand(1), expected)
    two, other = small.make(seed=3).state_dict(), small.make(seed=4).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.queries, other["queries"])


def test_no_part_of_the_policy_is_random_in_training_mode() -> None:
    policy = small.make()
    batch = small.observations(["press it"])
    policy.train()
    with torch.no_grad():
        training, evaluating = policy(batch), policy.eval()(batch)
    assert torch.equal(training, evaluating)


def test_every_parameter_gets_a_gradient() -> None:
    heads: tuple[Literal["tokens", "diffusion"], ...] = ("tokens", "diffusion")
    for preset, head in product(("nano", "siglip_test"), heads):
        policy = small.make(preset, head=head)
        batch = small.observations(["press it", "lift the red block"])
        policy.imitation_loss(batch, torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.bool)).backward()
        silent = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert silent == [], (preset, head)


def test_presets_and_configs_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"'nan'.*nano, siglip_test.*Did you mean 'nano'"):
        make_preset("nan")
    with pytest.raises(ValueError, match="needs at least one, each once"):
        TinyVLAConfig(cameras=(), state_dim=1, action_dim=1, chunk_length=1)
    with pytest.raises(ValueError, match="chunk_length is 0; expected at least 1"):
        TinyVLAConfig(cameras=("a",), state_dim=1, action_dim=1, chunk_length=0)


def test_a_state_far_from_the_demonstrations_is_clipped() -> None:
    policy = small.make()
    batch = small.observations(["press it"])

    def logits(third: float) -> torch.Tensor:
        state = torch.tensor([[0.5, 0.0, third]])
        return policy(type(batch)(images=batch.images, state=state, instructions=batch.instructions))

    # The third dimension is -1 in all demonstrations; its std counts as 0.001, so 10 standard deviations are 0.01.
    with torch.no_grad():
        assert torch.equal(logits(-0.98), logits(50.0))
        assert not torch.equal(logits(-0.995), logits(-0.98))


@pytest.mark.parametrize(("preset", "millions"), [("tinyvla_s", 409), ("tinyvla_b", 728), ("tinyvla_h", 1305)])
def test_the_published_sizes_have_their_parameters(preset: str, millions: int) -> None:
    with init_empty_weights():
        policy = TinyVLA.create(
            preset,
            cameras=small.CAMERAS,
            state_dim=7,
            action_dim=10,
            chunk_length=16,
            instructions=small.INSTRUCTIONS,
            statistics=small.plain_statistics(7, 10),
            head="diffusion",
        )
    assert round(sum(p.numel() for p in policy.parameters()) / 1e6) == millions
    assert policy.language.embed_in.num_embeddings == 50304
