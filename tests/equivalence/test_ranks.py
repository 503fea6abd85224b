"""Several processes train one policy, or imitate one batch: the update is one process's."""

import math
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing import start_processes

import made_openvla_checkpoint as made
import small_tinyvla as small
from adapted_tinyvla import sampled_group
from forked import FORKED
from sampled_episodes import update_by
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.config import DenoisingConfig, Head, OptimizerConfig, SamplingConfig, SFTConfig, TrainConfig
from simplevla.distributed.learner import divide
from simplevla.policies.base import ObservationBatch, Policy
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner, UpdateRefused
from simplevla.training.optimizer import MasterAdamW
from simplevla.training.ranks import full_tensor
from simplevla.types import Episode

CONFIG = TrainConfig(
    minibatches=2,
    microbatch_decisions=3,
    sampling=SamplingConfig(temperature=1.6),
    optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1),
)
EIGHT = replace(CONFIG, optimizer=replace(CONFIG.optimizer, moments="8bit"))
SMALL_STEPS = replace(CONFIG.optimizer, lr=1e-6)
"""The second update's episodes are the first policy's too, whose densities are narrow."""
FLOWS = {
    kind: replace(CONFIG, denoising=DenoisingConfig(flow=kind), optimizer=SMALL_STEPS) for kind in ("sde", "noise")
}
CONFIGS = {"8bit": EIGHT, **FLOWS}
RANKS = 2

Case = Literal["float32", "bfloat16", "lora", "8bit", "sde", "noise"]


def make(case: Case, folder: Path) -> Policy:
    if case in ("float32", "8bit"):
        return small.make()
    if case in FLOWS:
        policy = small.make(head="flow")
        policy.prepare_for_rl(FLOWS[case])
        return policy
    policy = load_policy(folder.parent / "policy")
    if case == "lora":
        bank = AdapterBank(policy)
        bank.add("milk", AdapterConfig(rank=4, alpha=8.0))
        bank.activate("milk", training=True)
    return policy


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an OpenVLA-OFT of bfloat16 for all ranks to load, and of what one process makes of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    made.write(folder / "published", {name: tensor.bfloat16() for name, tensor in made.tensors().items()})
    import_openvla_oft(folder / "published", folder / "policy", cameras=("fixed",))
    return folder


def seen_by_openvla(instructions: list[str], seed: int) -> ObservationBatch:
    rng = np.random.default_rng(seed)
    count = len(instructions)
    return ObservationBatch(
        images={"fixed": torch.from_numpy(rng.integers(0, 256, (count, 40, 40, 3), np.uint8))},
        state=torch.from_numpy(rng.normal(size=(count, made.STATE)).astype(np.float32)),
        instructions=instructions,
    )


def groups(policy: Policy, case: Case) -> list[list[Episode]]:
    """Two groups; five micro-batches of the first don't divide by two."""
    observations = seen_by_openvla if case in ("bfloat16", "lora") else small.observations
    sample = partial(sampled_group, policy, observations=observations)
    return [sample(), sample()]


def masters(learner: Learner) -> dict[str, Tensor]:
    """What is trained, in full precision."""
    return {name: full_tensor(p.detach()).contiguous().clone() for name, p in learner.optimizer.masters.items()}


def two_updates(case: Case, how: Literal["alone", "full", "copies"], folder: Path) -> None:
    """Write the parameters and the optimizer after two updates, the second after a resume, and the first one's metrics."""
    policy = make(case, folder)
    wanted = [groups(policy, case), groups(policy, case)]
    if how != "alone":
        divide(policy, how)
    config = CONFIGS.get(case, CONFIG)
    learner = Learner(policy, config)
    before = masters(learner)
    clip, storages = learner.optimizer.clip_gradients, []

    def clipped() -> float:
        storages[:] = [p.grad.untyped_storage().data_ptr() for p in policy.parameters() if p.grad is not None]
        return clip()

    if how == "copies":
        learner.optimizer.clip_gradients = clipped  # type: ignore[method-assign]
    stats = update_by(learner, wanted[0], 1)
    if how == "copies" and case == "float32":
        assert len(set(storages)) < len(storages) / 2, "gradients lie in the few buckets that are sent"
    state = {name: value.clone() for name, value in learner.optimizer_state().items()}
    again = Learner(policy, config)
    again.load_optimizer_state(state, learner.optimizer_steps)
    restored = again.optimizer_state()
    assert restored.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(restored[name], value), name
    update_by(again, wanted[1], 2)
    tensors = masters(again)
    for name, p in again.trainable.items():
        assert torch.equal(full_tensor(p.detach()), tensors[name].to(p.dtype)), "a parameter is its master, rounded"
    if how == "full":
        # Each rank keeps half of what it can divide.
        kept = sum(p.to_local().numel() for p in policy.parameters())  # type: ignore[operator]
        assert kept < 0.55 * sum(p.numel() for p in policy.parameters())
    broken = wanted[0][0][0]
    broken.logprobs = np.full_like(broken.logprobs, math.nan)
    with pytest.raises(UpdateRefused, match="the loss is nan"):
        update_by(again, wanted[0], 3)
    if how == "alone" or dist.get_rank() == 0:
        metrics = {f"stat/{name}": torch.tensor(value) for name, value in stats.items() if name != "update_s"}
        parts = {"before": before, "after": tensors, "state": state}
        save_file(
            {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()} | metrics,
            folder / f"{how}.safetensors",
        )


def scored_again(case: Case, how: Literal["alone", "full", "copies"], folder: Path) -> None:
    """Write what an update makes of log-probabilities that are off by 0.05 nats, and the policy after it."""
    policy = make(case, folder)
    wanted = groups(policy, case)
    exact = np.concatenate([episode.logprobs for group in wanted for episode in group])
    for episode in (episode for group in wanted for episode in group):
        episode.logprobs = episode.logprobs - np.float32(0.05)
    if how != "alone":
        divide(policy, how)
    learner = Learner(policy, replace(CONFIG, microbatch_decisions=6))
    score, calls = policy.score, []

    def counted(*inputs: Any) -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled())
        return score(*inputs)

    policy.score = counted  # type: ignore[method-assign]
    stats = update_by(learner, wanted, 1)
    assert stats["logprobs_recomputed"] == 1.0
    # Sixteen decisions are three micro-batches: alone all of them, and two for each of two ranks.
    assert calls.count(False) == (3 if how == "alone" else 2)
    got = np.concatenate([episode.logprobs for group in wanted for episode in group])
    np.testing.assert_allclose(got, exact, atol=1e-5)
    rank = 0 if how == "alone" else dist.get_rank()
    save_file({**masters(learner), "logprobs": torch.from_numpy(got)}, folder / f"{how}_{rank}.safetensors")


def unequal_parts(case: Case, how: str, folder: Path) -> None:
    """Three steps on tensors that two ranks divide equally (the first) and unequally, the last after a resume."""
    weights = [
        torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in ((32, 256), (33, 256), (65, 128))
    ]
    if how == "full":
        mesh = init_device_mesh("cpu", (RANKS,))
        weights = [distribute_tensor(weight, mesh, [Shard(0)]) for weight in weights]
    settings = EIGHT.optimizer if case == "8bit" else CONFIG.optimizer
    optimizer = MasterAdamW({str(i): weight.requires_grad_() for i, weight in enumerate(weights)}, settings)
    for number in range(3):
        for i, weight in enumerate(optimizer.parameters.values()):
            weight.grad = torch.sin(weight.detach() * (i + number + 1))
        if number == 2:
            state = {name: value.clone() for name, value in optimizer.state().items()}
            optimizer.load_state(state)
            for name, value in optimizer.state().items():
                assert torch.equal(value, state[name]), name
        optimizer.step(1e-4)
    kinds = {name for name in optimizer.state() if "codes" in name}
    if how == "full":
        assert kinds == {"exp_avg.codes/0", "exp_avg_sq.codes/0"}
    tensors = {name: full_tensor(p.detach()).contiguous().clone() for name, p in optimizer.parameters.items()}
    if how == "alone" or dist.get_rank() == 0:
        save_file(tensors, folder / f"{case}_{how}.safetensors")


IMITATION = SFTConfig(schedule="constant", optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1, warmup_steps=0))
IMITATED: dict[str, tuple[Head, SFTConfig]] = {
    "tokens": ("tokens", IMITATION),
    # Seven samples are four micro-batches: the last one has one sample.
    "diffusion": ("diffusion", replace(IMITATION, microbatch_size=2)),
    "flow": ("flow", replace(IMITATION, microbatch_size=2)),
    # Three: the second rank has one of them, and one that doesn't count.
    "adapter": ("tokens", replace(IMITATION, microbatch_size=3, gradient_checkpointing=True)),
    "bfloat16": ("tokens", replace(IMITATION, precision="bfloat16")),
}


def make_imitator(case: str) -> Policy:
    policy = small.make(head=IMITATED[case][0])
    if case == "adapter":
        bank = AdapterBank(policy)
        bank.add("sft", AdapterConfig(rank=4, alpha=4.0))
        bank.activate("sft", training=True)
    return policy


def batch(number: int) -> ChunkBatch:
    """Seven chunks of unequal ends: half of the samples aren't half of the valid actions."""
    ends = torch.tensor([3, 3, 3, 3, 1, 1, 2])
    return ChunkBatch(
        observations=small.observations([small.INSTRUCTIONS[i % 3] for i in range(7)], number),
        actions=torch.rand(7, 3, 2, generator=torch.Generator().manual_seed(number)) * 2 - 1,
        mask=torch.arange(3) < ends[:, None],
    )


def three_batches(case: Any, how: Any, folder: Path) -> None:
    """Write what is trained, and the optimizer, after three batches of each case, the last after a resume."""
    for name, (_, config) in IMITATED.items():
        policy = make_imitator(name)
        if how != "alone":
            divide(policy, how)
        trainer = Imitator(policy, config)
        stats = [trainer.update(batch(number), number) for number in range(2)]
        state = {key: value.clone() for key, value in trainer.optimizer_state().items()}
        trainer = Imitator(policy, config)
        trainer.load_optimizer_state(state, 2)
        stats.append(trainer.update(batch(2), 2))
        tensors = {key: full_tensor(p.detach()).contiguous().clone() for key, p in trainer.optimizer.parameters.items()}
        tensors |= {
            f"stat/{key}/{i}": torch.tensor(value) for i, row in enumerate(stats) for key, value in row.items()
        } | {f"state/{key}": value for key, value in trainer.optimizer_state().items()}
        if how == "alone" or dist.get_rank() == 0:
            save_file(tensors, folder / f"{name}_{how}.safetensors")


def rank(number: int, work: Any, case: Case, how: Any, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=RANKS)
    work(case, how, folder)
    dist.destroy_process_group()


def together(work: Any, case: Case, how: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(rank, (work, case, how, folder, port), RANKS, start_method=FORKED.get_start_method())


WORK: dict[str, list[tuple[Any, Case]]] = {
    "full": [
        (two_updates, "float32"),
        (two_updates, "bfloat16"),
        (two_updates, "lora"),
        (two_updates, "8bit"),
        (two_updates, "sde"),
        (two_updates, "noise"),
        (unequal_parts, "8bit"),
        (scored_again, "float32"),
        (three_batches, "float32"),
    ],
    "copies": [
        (two_updates, "float32"),
        (two_updates, "bfloat16"),
        (two_updates, "sde"),
        (two_updates, "noise"),
        (scored_again, "float32"),
        (three_batches, "float32"),
    ],
}


def all_work(case: Any, how: str, parent: Path) -> None:
    """All of `how` in one start of ranks: FSDP2 finds out once how each operator is divided, which is most of its time."""
    for work, case in WORK[how]:
        work(case, how, folder_of(work, case, parent))


def folder_of(work: Any, case: Case, parent: Path) -> Path:
    return parent / f"{work.__name__}_{case}"


def worked(work: Any, case: Case, how: str, parent: Path) -> Path:
    """Folder with what one process makes of the case, and two ranks."""
    for other, its_case in WORK[how]:
        folder = folder_of(other, its_case, parent)
        if not folder.exists():
            folder.mkdir()
            other(its_case, "alone", folder)
    if not (parent / how).exists():
        together(all_work, "float32", how, parent)
        (parent / how).mkdir()
    return folder_of(work, case, parent)


@pytest.mark.parametrize("how", ["full", "copies"])
def test_two_processes_update_as_one_does(how: str, parent: Path) -> None:
    folder = worked(two_updates, "float32", how, parent)
    alone, both = (load_file(folder / f"{name}.safetensors") for name in ("alone", how))
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(
            both[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    names = [name.removeprefix("after/") for name in alone if name.startswith("after/")]
    moved = [name for name in names if (alone[f"after/{name}"] - alone[f"before/{name}"]).abs().max() > 1e-4]
    assert len(moved) > 0.8 * len(names)


@pytest.mark.parametrize(
    ("case", "how", "tolerance"),
    [
        ("bfloat16", "full", 0.05),
        ("bfloat16", "copies", 0.05),
        ("lora", "full", 1e-5),
        ("8bit", "full", 2e-3),
        *((case, how, 1e-2) for case in FLOWS for how in ("full", "copies")),
    ],
)
def test_masters_moments_of_8_bits_and_flow_heads_are_divided_too(
    case: Case, how: str, tolerance: float, parent: Path
) -> None:
    """`tolerance`: how far two processes' steps lie from one's, as a share of them. Gradients of bfloat16 parameters are
    rounded elsewhere, and moments that are small enough on a rank aren't quantised; adapters are float32."""
    folder = worked(two_updates, case, how, parent)
    alone, both = (load_file(folder / f"{name}.safetensors") for name in ("alone", how))
    names = [name.removeprefix("after/") for name in alone if name.startswith("after/")]
    assert {alone[f"after/{name}"].dtype for name in names} == {torch.float32}
    step, apart = (
        torch.cat([(end[f"after/{name}"] - start[f"{part}/{name}"]).flatten() for name in names])
        for end, start, part in ((alone, alone, "before"), (both, alone, "after"))
    )
    assert float(apart.norm() / step.norm()) < tolerance
    assert float(step.abs().max()) > CONFIGS.get(case, CONFIG).optimizer.lr
    assert float(both["stat/grad_norm"]) == pytest.approx(float(alone["stat/grad_norm"]), rel=0.01)
    kinds = {name.removeprefix("state/").split("/")[0] for name in both if name.startswith("state/")}
    assert ("master" in kinds) == (case == "bfloat16")
    assert ("exp_avg.codes" in kinds) == (case == "8bit")


def test_tensors_that_ranks_divide_unequally_keep_moments_of_32_bits(parent: Path) -> None:
    folder = worked(unequal_parts, "8bit", "full", parent)
    unequal_parts("float32", "alone", folder)
    names = ("8bit_alone", "float32_alone", "8bit_full")
    quantised, exact, both = (load_file(folder / f"{name}.safetensors") for name in names)
    assert torch.equal(both["0"], quantised["0"]), "the same blocks"
    for name in ("1", "2"):
        torch.testing.assert_close(both[name], exact[name], atol=1e-6, rtol=0)
    assert not torch.allclose(quantised["1"], exact["1"], atol=1e-6, rtol=0), "alone its moments have 8 bits"


@pytest.mark.parametrize("how", ["full", "copies"])
def test_ranks_share_the_scoring_of_what_differs(how: str, parent: Path) -> None:
    folder = worked(scored_again, "float32", how, parent)
    alone, *ranks = (load_file(folder / f"{name}.safetensors") for name in ("alone_0", f"{how}_0", f"{how}_1"))
    assert torch.equal(ranks[0]["logprobs"], ranks[1]["logprobs"])
    for name, value in alone.items():
        torch.testing.assert_close(
            ranks[0][name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    start = {name: p.detach() for name, p in small.make().named_parameters()}
    assert sum(float((alone[name] - p).abs().max()) > 5e-5 for name, p in start.items()) > 0.8 * len(start)


@pytest.mark.parametrize("how", ["full", "copies"])
def test_two_processes_imitate_as_one_does(how: str, parent: Path) -> None:
    folder = worked(three_batches, "float32", how, parent)
    for case in IMITATED:
        expected, got = (load_file(folder / f"{case}_{name}.safetensors") for name in ("alone", how))
        assert expected.keys() == got.keys()
        start = {name: p.detach() for name, p in make_imitator(case).named_parameters()}
        trained = [name for name in expected if name in start]
        if case == "bfloat16":
            # Products of other rows are rounded to 8 bits: what is equal is where the steps lead.
            steps = [torch.cat([(end[name] - start[name]).flatten() for name in trained]) for end in (expected, got)]
            assert float((steps[0] - steps[1]).norm() / steps[0].norm()) < 0.1
            continue
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=f"{case}: {name}": f"{n}: {text}"
            )
        moved = [name for name in trained if float((expected[name] - start[name]).abs().max()) > 5e-5]
        assert len(moved) > 0.8 * len(trained)
        assert all(".lora_" in name for name in trained) == (case == "adapter")
