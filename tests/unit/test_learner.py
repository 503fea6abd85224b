from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_policy import FakePolicy, SharingPolicy
from sampled_episodes import observations, sampled_episode, sampled_group, small_policy, update_by
from simplevla.config import OptimizerConfig, SamplingConfig, TrainConfig
from simplevla.policies.base import Sampling
from simplevla.training.learner import Learner, UpdateRefused, pack
from simplevla.types import Episode

CONFIG = TrainConfig(
    sampling=SamplingConfig(groups=4, group_size=4, temperature=1.6),
    optimizer=OptimizerConfig(lr=0.01),
    minibatches=2,
    microbatch_decisions=3,
)


def parameters(policy: FakePolicy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def unchanged(policy: FakePolicy, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def mean_logprob(policy: FakePolicy, episode: Episode) -> float:
    """Over the units of executed actions."""
    batch = observations(episode.images["front"], episode.state)
    with torch.no_grad():
        logprobs, _ = policy.score(batch, torch.from_numpy(episode.trace), Sampling(temperature=1.6))
    mask = policy.unit_action_index[None] < episode.executed[:, None]
    return float(logprobs[torch.from_numpy(mask)].mean())


def test_a_chunk_solved_at_its_third_action_trains_on_three_actions() -> None:
    # H = 8, A = 7 as on LIBERO: the second decision executed 3 of 8 actions, so 21 of its 56 units are valid
    policy = small_policy()
    episode = sampled_episode(policy, 0, True, [8, 3], 1.0)
    episode.logprobs = np.zeros((2, 56), np.float32)
    batch = pack([episode], [1.0], np.repeat(np.arange(8), 7), "episode")
    assert batch.mask.sum(dim=1).tolist() == [56, 21]
    assert batch.mask[1].tolist() == [True] * 21 + [False] * 35
    torch.testing.assert_close(batch.weights, batch.mask / 77, atol=1e-8, rtol=0)


def test_decisions_carry_their_episode_s_advantage_and_observation() -> None:
    policy = small_policy()
    first = sampled_episode(policy, 1, True, [2, 2, 1], 1.0)
    second = sampled_episode(policy, 2, False, [2], 1.0)
    batch = pack([first, second], [1.5, -0.5], policy.unit_action_index, "episode")
    assert batch.advantages.tolist() == [1.5, 1.5, 1.5, -0.5]
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [3, 1]
    np.testing.assert_array_equal(parts[1].observations().state.numpy(), second.state)
    np.testing.assert_array_equal(parts[0].observations().images["front"].numpy(), first.images["front"])
    np.testing.assert_array_equal(parts[0].trace().numpy(), first.trace)
    assert parts[1].observations().instructions == ["do reach"]
    # episode 0 has 4 + 4 + 2 units, episode 1 has 4; each episode weighs a half
    assert batch.weights.sum(dim=1).tolist() == pytest.approx([0.2, 0.2, 0.1, 0.5])


def test_ratio_is_one_before_the_first_step() -> None:
    policy = small_policy()
    one = replace(CONFIG, minibatches=1)
    metrics = update_by(Learner(policy, one), [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)], 1)
    for name in ("ratio_mean", "ratio_min", "ratio_max"):
        assert metrics[name] == pytest.approx(1.0, abs=1e-6)
    assert metrics["logprob_gap"] < 1e-6
    assert metrics["logprob_gap_outside"] == metrics["ratio_outside"] == 0.0
    # at ratio 1 the loss is minus the mean advantage, which is zero in every group
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)


def test_an_update_raises_the_successful_sibling_and_lowers_the_failed_one() -> None:
    policy = small_policy()
    good, bad = sampled_group(policy, 0, [1, 0])
    before = mean_logprob(policy, good), mean_logprob(policy, bad)
    update_by(Learner(policy, replace(CONFIG, minibatches=1)), [[good, bad]], 1)
    assert mean_logprob(policy, good) > before[0] + 1e-3
    assert mean_logprob(policy, bad) < before[1] - 1e-3


@pytest.mark.parametrize("reward", [0, 1])
def test_zero_advantages_leave_the_parameters_bit_identical(reward: int) -> None:
    policy = small_policy()
    learner = Learner(policy, replace(CONFIG, optimizer=OptimizerConfig(lr=0.01, weight_decay=0.5)))
    update_by(learner, [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)], 1)  # so that AdamW has momentum
    before, steps = parameters(policy), learner.optimizer_steps
    metrics = update_by(learner, [sampled_group(policy, i, [reward] * 4) for i in range(4)], 2)
    assert unchanged(policy, before)
    assert (metrics["skipped_minibatches"], learner.optimizer_steps) == (2.0, steps)
    assert "ratio_mean" not in metrics


def test_only_the_mini_batch_without_signal_is_skipped() -> None:
    policy = small_policy()
    learner = Learner(policy, replace(CONFIG, minibatches=4))
    groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(3)] + [sampled_group(policy, 3, [0, 0, 0, 0])]
    metrics = update_by(learner, groups, 1)
    assert (metrics["skipped_minibatches"], metrics["optimizer_steps"]) == (1.0, 3.0)


def test_counts_and_lengths() -> None:
    policy = small_policy()
    # siblings execute 2+1, 2+2+1, 2+2+2+1, 2+1 actions: 3, 5, 7, 3 env steps in 2, 3, 4, 2 decisions; 2 units each
    metrics = update_by(Learner(policy, CONFIG), [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(2)], 1)
    assert (metrics["decisions"], metrics["units"]) == (22.0, 72.0)
    assert metrics["episode_env_steps"] == pytest.approx(4.5)


def test_mini_batches_hold_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy()
    learner = Learner(policy, CONFIG)
    groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)]
    seen: list[set[int]] = []
    original = learner.accumulate_gradients

    def record(batch, place):  # type: ignore[no-untyped-def]
        seen.append({episode.request.seed[0] for episode, _ in batch.where})
        return original(batch, place)

    monkeypatch.setattr(learner, "accumulate_gradients", record)
    update_by(learner, groups, 1)
    assert len(seen) == 2
    assert sorted(seen[0] | seen[1]) == [100 * i + k for i in range(4) for k in range(4)]
    for part in seen:
        numbers = {seed // 100 for seed in part}
        assert part == {100 * i + k for i in numbers for k in range(4)}
        assert len(numbers) == 2


def test_the_order_of_groups_follows_from_seed_and_update() -> None:
    def after(seed: int, update: int) -> Tensor:
        policy = small_policy()
        config = replace(CONFIG, seed=seed, minibatches=4)
        groups = [sampled_group(policy, i, [1, 0, 0, i % 2]) for i in range(4)]
        update_by(Learner(policy, config), groups, update)
        return policy.linear.weight.detach()

    assert torch.equal(after(0, 1), after(0, 1))
    assert not torch.equal(after(0, 1), after(0, 2))
    assert not torch.equal(after(0, 1), after(1, 1))


def test_gap_between_rollout_and_update_is_refused() -> None:
    policy = small_policy()
    before = parameters(policy)
    sampled_at_one = [sampled_group(policy, i, [1, 0, 0, 1], temperature=0.3) for i in range(4)]
    with pytest.raises(UpdateRefused, match=r"update 7, mini-batch 1 of 2.*nats on average.*at most 0.2"):
        update_by(Learner(policy, CONFIG), sampled_at_one, 7)
    assert unchanged(policy, before)


def test_gap_is_the_mean_difference() -> None:
    policy = small_policy()
    groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)]
    for episode in (episode for siblings in groups for episode in siblings):
        episode.logprobs = episode.logprobs - np.float32(0.003)
    metrics = update_by(Learner(policy, CONFIG), groups, 1)
    assert metrics["logprob_gap"] == pytest.approx(0.003, abs=1e-5)
    assert metrics["logprob_gap_outside"] == 0.0
    assert metrics["logprobs_recomputed"] == 0.0


def test_log_probabilities_that_differ_are_computed_again() -> None:
    ends = []
    for shift in (0.0, 0.03):
        policy = small_policy()
        groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)]
        for episode in (episode for siblings in groups for episode in siblings):
            episode.logprobs = episode.logprobs - np.float32(shift)
        metrics = update_by(Learner(policy, CONFIG), groups, 1)
        assert metrics["logprobs_recomputed"] == float(shift > 0)
        assert metrics["logprob_gap"] == pytest.approx(shift, abs=1e-5), "as it was found"
        ends.append((metrics["ratio_mean"], parameters(policy)))
    (ratio, expected), (again, got) = ends
    assert again == pytest.approx(ratio, abs=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_non_finite_loss_stops_before_the_parameters_move() -> None:
    policy = small_policy()
    groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)]
    groups[0][0].state[0, 0] = np.nan
    before = parameters(policy)
    with pytest.raises(UpdateRefused, match=r"loss is nan in update 5, mini-batch \d of 2"):
        update_by(Learner(policy, replace(CONFIG, optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0))), groups, 5)
    assert unchanged(policy, before)


def test_non_finite_gradient_stops_before_the_parameters_move() -> None:
    policy = small_policy()
    groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)]
    before = parameters(policy)
    handle = policy.linear.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UpdateRefused, match=r"gradient norm is (nan|inf) in update 5, mini-batch 1 of 2"):
        update_by(Learner(policy, CONFIG), groups, 5)
    handle.remove()
    assert unchanged(policy, before)
    assert policy.linear.weight.grad is None


def test_the_gradient_is_clipped_to_its_norm() -> None:
    def step(max_grad_norm: float) -> tuple[float, Tensor]:
        policy = small_policy()
        before = policy.linear.weight.detach().clone()
        settings = OptimizerConfig(lr=0.01, weight_decay=0.0, max_grad_norm=max_grad_norm)
        learner = Learner(policy, replace(CONFIG, minibatches=1, optimizer=settings))
        norm = update_by(learner, [sampled_group(policy, 0, [1, 0, 0, 1])], 1)["grad_norm"]
        moment = learner.optimizer_state()["exp_avg/linear.weight"], learner.optimizer_state()["exp_avg/linear.bias"]
        # after one step the first moment is 0.1 of the gradient that AdamW saw
        seen = 10 * float(torch.cat([m.flatten() for m in moment]).norm())
        assert not torch.equal(policy.linear.weight, before)
        return norm, torch.tensor(seen)

    norm, seen = step(1e9)
    assert float(seen) == pytest.approx(norm, rel=1e-5)
    clipped_norm, seen = step(norm / 4)
    assert clipped_norm == pytest.approx(norm, rel=1e-6)
    assert float(seen) == pytest.approx(norm / 4, rel=1e-4)


def test_warmup_then_constant() -> None:
    policy = small_policy()
    learner = Learner(policy, replace(CONFIG, optimizer=OptimizerConfig(lr=0.004, warmup_steps=4), minibatches=1))
    rates = []
    for update in range(1, 7):
        update_by(learner, [sampled_group(policy, update, [1, 0, 0, 1])], update)
        rates.append(learner.optimizer.lr)
    assert rates == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.004, 0.004])


def test_frozen_parameters_stay_and_have_no_optimizer_state() -> None:
    policy = small_policy()
    policy.linear.bias.requires_grad_(False)
    before = parameters(policy)
    learner = Learner(policy, CONFIG)
    update_by(learner, [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)], 1)
    assert torch.equal(policy.linear.bias, before["linear.bias"])
    assert not torch.equal(policy.linear.weight, before["linear.weight"])
    assert set(learner.optimizer_state()) == {f"{kind}/linear.weight" for kind in ("exp_avg", "exp_avg_sq", "step")}


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Learner(small_policy().requires_grad_(False), CONFIG)


def test_the_policy_is_in_evaluation_mode() -> None:
    policy = small_policy().train()
    update_by(Learner(policy, CONFIG), [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)], 1)
    assert not policy.training


def test_optimizer_of_another_architecture_is_refused() -> None:
    policy = small_policy()
    learner = Learner(policy, CONFIG)
    update_by(learner, [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(4)], 1)
    tensors = learner.optimizer_state()
    with pytest.raises(ValueError, match=r"'linear.weight' with shape \(7, 3\); expected \(20, 3\)"):
        Learner(small_policy(), CONFIG).load_optimizer_state({**tensors, "exp_avg/linear.weight": torch.zeros(7, 3)}, 2)
    with pytest.raises(ValueError, match=r"'body.weight', which isn't a trainable parameter"):
        Learner(small_policy(), CONFIG).load_optimizer_state({"exp_avg/body.weight": torch.zeros(7, 3)}, 2)


class Shares(FakePolicy):
    """Half of the units get no advantage; the others' clip range is the share `clip`."""

    clip = 1.0

    @property
    def unit_discount(self) -> np.ndarray:
        return (np.arange(self.units) % 2).astype(np.float32)

    @property
    def unit_clip_scale(self) -> np.ndarray:
        return np.full(self.units, self.clip, np.float32)


def test_the_learner_asks_the_policy_for_each_units_share() -> None:
    torch.manual_seed(0)
    policy = Shares()
    episode = sampled_episode(policy, 1, True, [2, 2], 1.0)
    learner = Learner(policy, CONFIG)

    def stats(clip: float, shift: float, advantage: float) -> dict[str, float]:
        policy.clip = clip
        batch = pack([episode], [advantage], policy.unit_action_index, "episode")
        with torch.no_grad():
            logprobs, _ = policy.score(batch.observations(), batch.trace(), Sampling(temperature=1.6))
        return learner.accumulate_gradients(replace(batch, old_logprobs=logprobs - shift), "here")

    # At ratio 1 the loss is minus the mean share of the advantage: a half.
    assert stats(1.0, 0.0, 1.0)["loss"] == pytest.approx(-0.5, abs=1e-4)
    # Ratio e^0.15 = 1.16 is inside 1.28 and outside 1 + 0.1 * 0.28; e^-0.15 = 0.86 is inside 0.8 and outside 1 - 0.1 * 0.2.
    assert stats(1.0, 0.15, 1.0)["clipfrac_high"] == 0.0
    assert stats(0.1, 0.15, 1.0)["clipfrac_high"] == pytest.approx(0.5, abs=1e-4)
    assert stats(1.0, -0.15, -1.0)["clipfrac_low"] == 0.0
    assert stats(0.1, -0.15, -1.0)["clipfrac_low"] == pytest.approx(0.5, abs=1e-4)


def test_what_siblings_begin_with_is_scored_once_by_a_policy_that_shares() -> None:
    config, gradients, rows = replace(CONFIG, microbatch_decisions=64), [], []
    group = sampled_group(small_policy(), 1, (1, 0, 1))
    for episode in group[1:]:
        episode.state[0], episode.images["front"][0] = group[0].state[0], group[0].images["front"][0]
    for kind in (FakePolicy, SharingPolicy):
        policy = kind(chunk_length=2, action_dim=2)
        batch = pack(group, [1.0, -1.0, 0.5], policy.unit_action_index, "episode")
        Learner(policy, config).accumulate_gradients(batch, "here")
        gradients.append(policy.linear.weight.grad)
        rows.append(policy.batch_sizes)
    assert rows == [[9], [7]]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
