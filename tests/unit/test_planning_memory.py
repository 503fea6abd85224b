"""Bytes that are planned with: by hand, and as real policies, gradients and optimizers have them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import made_openvla_checkpoint as made
import small_tinyvla
from sampled_episodes import update_by
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.config import Head, OptimizerConfig, RayConfig, SamplingConfig, TrainConfig
from simplevla.planning.footprint import Counter, update_footprint
from simplevla.planning.memory import (
    BLOCK,
    Sizes,
    bfloat16_copies,
    device_memory,
    moment_bytes,
    sizes_of,
    stored_episodes,
)
from simplevla.planning.unfilled import add_trained_adapter, published_openvla_oft, saved
from simplevla.policies.base import Sampling
from simplevla.policies.linear import ROWS
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.suites.base import SuiteSpec
from simplevla.suites.libero.suite import LiberoSuite
from simplevla.training.learner import Learner
from simplevla.training.optimizer import MasterAdamW
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Task

SPEC = SuiteSpec(
    cameras=dict.fromkeys(small_tinyvla.CAMERAS, (32, 32)),
    state_names=("a", "b", "c"),
    action_names=("x", "y"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_hz=10.0,
)
ALL_HALF = Sizes(
    parameters=1000,
    weight_bytes=2000,
    trained=(600, 400),
    trained_half=1000,
    layer_bytes=500,
    outside_bytes=300,
    stored_bytes=100,
)
UPDATE, ROLLOUT = 5000, 700


def test_one_gpu_by_hand() -> None:
    memory = device_memory(ALL_HALF, TrainConfig(), 1, UPDATE, ROLLOUT)
    assert memory.kept == {
        "weights": 2000,
        "float32 master weights": 4000,
        "gradients": 4000,
        "AdamW's moments": 8000,
        "process (assumed)": 10**9,
    }
    # The half-precision gradients beside the activations; the second moments' square roots.
    assert memory.passing == {"a micro-batch": 5000 + 2000, "an optimizer step": 4000, "a policy batch": 700}
    assert memory.total == 2000 + 4000 + 4000 + 8000 + 10**9 + 7000


def test_four_gpus_divide_all_but_activations() -> None:
    memory = device_memory(ALL_HALF, TrainConfig(), 4, UPDATE, ROLLOUT)
    kept = {"weights": 500, "float32 master weights": 1000, "gradients": 1000, "AdamW's moments": 2000}
    beside = {"replica for rollouts": 2000, "a policy batch beside it": 700, "two processes (assumed)": 2 * 10**9}
    assert memory.kept == kept | beside
    # Outside of the layers; two layers and the gradient of one.
    assert memory.passing == {"a micro-batch": 5000 + 500 + 300 + 3 * 500, "an optimizer step": 1000}
    copies = replace(TrainConfig(), ray=RayConfig(divide="copies"))
    assert device_memory(ALL_HALF, copies, 4, UPDATE, ROLLOUT).kept["AdamW's moments"] == 8000


def test_moments_of_eight_bits() -> None:
    # 8192 = 32 blocks: a byte each, 32 scales, a table; 100 and 5000 (no multiple of 256) stay float32.
    assert moment_bytes([8192], "8bit") == 2 * (8192 + 4 * 32 + 1024)
    assert moment_bytes([100, 5000], "8bit") == 8 * 5100
    assert moment_bytes([8192], "float32") == 8 * 8192
    assert BLOCK == 256


def test_moments_of_eight_bits_are_those_that_torchao_makes() -> None:
    parameters = {name: torch.nn.Parameter(torch.ones(size)) for name, size in (("a", 8192), ("b", 100), ("c", 5000))}
    optimizer = MasterAdamW(parameters, OptimizerConfig(moments="8bit"))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-3)
    real = 0
    for state in optimizer.adamw.state.values():
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            parts = [moment.codes, moment.scale, moment.qmap] if hasattr(moment, "codes") else [moment]
            real += sum(part.nbytes for part in parts)
    assert real == moment_bytes([8192, 100, 5000], "8bit")


def libero() -> LiberoSuite:
    return LiberoSuite("libero_spatial", "simplevla", "stock", 256, "stock", "published", 10)


def test_the_published_policy_has_as_many_parameters_as_its_parts() -> None:
    def layer(width: int, mlp: int, scales: int) -> int:
        """A vision transformer's: qkv and output, two of the MLP, two norms."""
        return 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width + scales * width

    llama = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 32064 * 4096 + 4096
    dino = 23 * layer(1024, 4096, 2) + 3 * 14 * 14 * 1024 + 1024 + (256 + 1) * 1024 + 5 * 1024
    siglip = 26 * layer(1152, 4304, 0) + 3 * 14 * 14 * 1152 + 1152 + 256 * 1152
    joined = 1024 + 1152
    projector = joined * 4 * joined + 4 * joined + 4 * joined * 4096 + 4096 + 4096 * 4096 + 4096
    head = 256 * 4096
    policy = published_openvla_oft(libero())
    sizes = sizes_of(policy, libero().spec)
    assert sizes.parameters == llama + dino + siglip + projector + head
    assert 7.3e9 < sizes.parameters < 7.5e9
    assert sizes.weight_bytes == 2 * sizes.parameters
    assert sizes.trained_half == sum(sizes.trained) == sizes.parameters
    assert sizes.layer_bytes == 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)


def test_gradients_and_moments_are_what_a_learner_has() -> None:
    policy = small_tinyvla.make()
    config = TrainConfig(
        sampling=SamplingConfig(groups=1, group_size=2),
        minibatches=1,
        microbatch_decisions=2,
        optimizer=OptimizerConfig(lr=1e-3),
    )
    learner = Learner(policy, config)
    sums = {"gradients": 0}
    step = learner._step

    def seen(place: str) -> float:
        sums["gradients"] = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
        return step(place)

    learner._step = seen  # type: ignore[method-assign]
    update_by(learner, [[episode(policy, 0, True), episode(policy, 1, False)]], 1)
    sizes = sizes_of(policy, SPEC)
    memory = device_memory(sizes, config, 0, UPDATE, ROLLOUT)
    moments = sum(x.nbytes for state in learner.optimizer.adamw.state.values() for x in state.values() if x.ndim)
    assert memory.kept["gradients"] == sums["gradients"] > 0
    assert memory.kept["AdamW's moments"] == moments > 0
    assert memory.kept["weights"] == sum(parameter.nbytes for parameter in policy.parameters())


def episode(policy: TinyVLA, seed: int, success: bool) -> Episode:
    """Of two decisions."""
    batch = small_tinyvla.observations([small_tinyvla.INSTRUCTIONS[0]] * 2, seed)
    sample = policy.act(batch, Sampling(temperature=1.6), [np.random.default_rng((seed, row)) for row in range(2)])
    task = Task(name="one", instruction=batch.instructions[0], horizon=6, horizon_reason="test")
    return Episode(
        request=EpisodeRequest(task=task, initial_state=0, seed=(seed,)),
        status=EpisodeStatus.SUCCESS if success else EpisodeStatus.TIMEOUT,
        env_steps=6,
        images={name: image.numpy() for name, image in batch.images.items()},
        state=batch.state.numpy(),
        trace=sample.trace.numpy(),
        logprobs=sample.logprobs.numpy(),
        executed=np.array([3, 3]),
        actions=sample.actions,
    )


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_stored_bytes_are_an_episode_s(head: str) -> None:
    policy = small_tinyvla.make(head=head)  # type: ignore[arg-type]
    one = episode(policy, 0, True)
    arrays = [*one.images.values(), one.state, one.trace, one.logprobs, one.executed, one.actions]
    sizes = sizes_of(policy, SPEC)
    assert 2 * sizes.stored_bytes == sum(array.nbytes for array in arrays)
    config = TrainConfig(sampling=SamplingConfig(groups=4, group_size=8))
    assert stored_episodes(sizes, config, 2) == 4 * 8 * 2 * sizes.stored_bytes
    # Those of the update that trains, and of the next one.
    assert stored_episodes(sizes, replace(config, rollouts_ahead=True), 2) == 2 * 4 * 8 * 2 * sizes.stored_bytes


def test_rollouts_ahead_have_a_policy_and_a_batch_of_their_own() -> None:
    sizes = sizes_of(small_tinyvla.make(), SPEC)
    turns, ahead = (
        device_memory(sizes, TrainConfig(rollouts_ahead=on), gpus=1, update_bytes=10**6, batch_bytes=10**5)
        for on in (False, True)
    )
    assert ahead.total == turns.total + sizes.weight_bytes + 10**5


def test_an_adapter_is_as_large_as_the_bank_makes_it(tmp_path: Path) -> None:
    made.write(tmp_path / "published")
    import_openvla_oft(tmp_path / "published", tmp_path / "policy", cameras=("fixed",))
    real = load_policy(tmp_path / "policy")
    bank = AdapterBank(real)
    bank.add("task", AdapterConfig(rank=4, alpha=4))
    bank.activate("task", training=True)
    real.save(tmp_path / "adapted")
    empty = saved(tmp_path / "policy")
    add_trained_adapter(empty, AdapterConfig(rank=4, alpha=4))
    spec = libero().spec
    assert all(parameter.device.type == "meta" for parameter in empty.parameters())
    assert sizes_of(empty, spec) == sizes_of(real, spec)
    assert sizes_of(saved(tmp_path / "adapted"), spec) == sizes_of(real, spec)
    assert 4 * sum(sizes_of(empty, spec).trained) == bank.bytes("task")


def test_counting_by_hand() -> None:
    layer = torch.nn.Linear(4, 3, bias=False, device="meta")
    with Counter(layer) as counter:
        x = torch.zeros(2, 4)
        y = layer(x)
        assert counter.alive == 4 * 2 * 4 + 4 * 2 * 3
        z = torch.cat([y, y])
        del x, y
        # The graph keeps x for the weight's gradient, and nothing keeps y.
        assert counter.alive == 4 * 2 * 4 + 4 * 4 * 3
        del z
    assert counter.alive == 0
    assert counter.peak == 4 * (2 * 4 + 2 * 3 + 4 * 3)


def without_numbers(real: TinyVLA) -> TinyVLA:
    with torch.device("meta"):
        return TinyVLA(real.config, real.statistics, real.instruction_tokens.tokenizer)


def test_a_policy_without_numbers_takes_what_the_real_one_takes() -> None:
    real = small_tinyvla.make("siglip_test")
    for checkpointing in (False, True):
        computed, counted = (
            update_footprint(p, SPEC, small_tinyvla.INSTRUCTIONS[0], ROWS, checkpointing)
            for p in (real, without_numbers(real))
        )
        assert counted == pytest.approx(computed, rel=0.05)


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing() -> None:
    policy = without_numbers(small_tinyvla.make("siglip_test"))

    def peak(rows: int, checkpointing: bool = False) -> int:
        return update_footprint(policy, SPEC, small_tinyvla.INSTRUCTIONS[0], rows, checkpointing)

    assert peak(1) < peak(2) < peak(4) < peak(8)
    assert peak(8, checkpointing=True) < peak(8)


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_bfloat16_takes_no_more_than_is_planned_with(head: Head, rows: int, tmp_path: Path) -> None:
    """Activations are planned as float32 ones, with copies of all weights: more than autocast makes, not much more."""
    policy, instruction = small_tinyvla.make(head=head), small_tinyvla.INSTRUCTIONS[1]
    policy.save(tmp_path / "policy")
    empty = saved(tmp_path / "policy")
    planned = update_footprint(empty, SPEC, instruction, rows, checkpointing=False) + bfloat16_copies(empty)
    policy.compute_in("bfloat16")
    for parameter in policy.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = small_tinyvla.observations([instruction] * rows)
    with Counter(policy) as counter:
        torch.autograd.backward(policy.score(batch, policy.empty_trace(rows), Sampling())[0].sum())
    assert counter.peak <= planned < 1.6 * counter.peak
