"""An imported TinyVLA checkpoint against the published forward pass, written independently in made_tinyvla_checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import made_tinyvla_checkpoint as made
from simplevla.adapters.load import load_policy
from simplevla.cli import main
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.policies.tinyvla.diffusion import DiffusionHead
from simplevla.policies.tinyvla.pixels import prepare_pixels
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.published import import_tinyvla
from simplevla.policies.tinyvla.vision import CLIP_MEAN, CLIP_STD

INSTRUCTIONS = ("push the red block", "put it all onto the stove, gently")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)


def merged(model: nn.Module, lora: dict[str, tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """Adapted weights in float64, by numpy."""
    weights = dict(model.named_parameters())
    return {
        f"{module}.weight": weights[f"{module}.weight"].detach().numpy().astype(np.float64)
        + made.ALPHA / made.RANK * np.einsum("or,ri->oi", b.numpy().astype(np.float64), a.numpy().astype(np.float64))
        for module, (a, b) in lora.items()
    }


def observations(count: int = 2, seed: int = 0) -> ObservationBatch:
    rng = np.random.default_rng(seed)
    images = {name: torch.from_numpy(rng.integers(0, 256, (count, 40, 50, 3), np.uint8)) for name in made.CAMERAS}
    state = torch.from_numpy(rng.normal(size=(count, made.STATE)).astype(np.float32))
    return ObservationBatch(images=images, state=state, instructions=list(INSTRUCTIONS[:count]))


def row(batch: ObservationBatch, i: int) -> ObservationBatch:
    images = {name: image[i : i + 1] for name, image in batch.images.items()}
    return ObservationBatch(images=images, state=batch.state[i : i + 1], instructions=[batch.instructions[i]])


def imported(folder: Path, out: Path, base: Path | None = None) -> TinyVLA:
    import_tinyvla(folder, out, cameras=made.CAMERAS, base=base)
    policy = load_policy(out)
    assert isinstance(policy, TinyVLA)
    return policy


def reference_condition(model: nn.Module, policy: TinyVLA, batch: ObservationBatch) -> Tensor:
    """[1, WIDTH] in float64, of one observation."""
    tokens, numbers = made.tokenizer(), made.statistics()
    colours = (CLIP_MEAN, CLIP_STD) if policy.config.vision.kind == "clip" else ([0.5] * 3, [0.5] * 3)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in colours)
    pixels = [
        ((prepare_pixels(batch.images[name], policy.config.vision, mean) - mean) / std).double()
        for name in made.CAMERAS
    ]
    before = tokens.encode(f"{SYSTEM} USER: ").ids
    after = tokens.encode(f"\n{batch.instructions[0]} ASSISTANT: <|endoftext|>").ids
    assert after[-1] == 0
    state = (batch.state.double() - torch.from_numpy(numbers["qpos_mean"])) / torch.from_numpy(numbers["qpos_std"])
    return made.condition(model, before, pixels, after, state)


@pytest.mark.parametrize("kind", ["whole", "lora", "siglip"])
def test_an_imported_policy_computes_what_the_published_code_computes(tmp_path: Path, kind: str) -> None:
    tower = "siglip" if kind == "siglip" else "clip"
    model = made.published_model(kind=tower)
    if kind == "lora":
        lora = made.write_lora(tmp_path / "run", made.published_model())
        weights = model.state_dict()
        model.double().load_state_dict(
            weights | {k: torch.from_numpy(v) for k, v in merged(made.published_model(), lora).items()}
        )
    else:
        made.write_whole(tmp_path / "run", model, tower)
    policy, model = imported(tmp_path / "run", tmp_path / "policy").double(), model.double()
    batch = observations()
    noisy = torch.randn(2, made.CHUNK, made.ACTION, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    steps = torch.tensor([90, 7])
    with torch.no_grad():
        expected = torch.cat([reference_condition(model, policy, row(batch, i)) for i in range(2)])
        got = policy(batch)
        assert isinstance(policy.head, DiffusionHead)
        noise = policy.head.unet(noisy, steps, got)
        expected_noise = made.predicted_noise(model, noisy, steps, expected)
    # The imported weights are float32: exact for "whole" and "siglip", rounded once after merging for "lora".
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(noise, expected_noise, atol=1e-6, rtol=0)
    assert expected.abs().mean() > 0.1
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_a_padded_batch_gives_what_single_rows_give(tmp_path: Path) -> None:
    made.write_whole(tmp_path / "run", made.published_model())
    policy = imported(tmp_path / "run", tmp_path / "policy")
    batch = observations()
    with torch.no_grad():
        together = policy(batch)
        alone = torch.cat([policy(row(batch, i)) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_lora_is_merged_exactly(tmp_path: Path) -> None:
    lora = made.write_lora(tmp_path / "run", made.published_model())
    policy = imported(tmp_path / "run", tmp_path / "policy")
    ours = policy.state_dict()
    for name, expected in merged(made.published_model(), lora).items():
        if "encoder.layers.2." in name:
            continue  # the tower's last layer, which is never read
        mine = name.removeprefix("gpt_neox.vision_tower.vision_model.")
        mine = f"vision.tower.{mine}" if mine != name else f"language.{name.removeprefix('gpt_neox.')}"
        np.testing.assert_allclose(ours[mine].numpy(), expected, rtol=1e-7, atol=1e-9, err_msg=name)


def test_actions_and_state_are_scaled_as_in_training(tmp_path: Path) -> None:
    made.write_whole(tmp_path / "run", made.published_model())
    policy, numbers = imported(tmp_path / "run", tmp_path / "policy"), made.statistics()
    for sign, name in ((-1, "action_min"), (1, "action_max")):
        edge = policy.action_centre + sign * policy.action_half_range
        np.testing.assert_allclose(edge.numpy(), numbers[name], atol=1e-6)
    np.testing.assert_allclose(policy.state_mean.numpy(), numbers["qpos_mean"])
    np.testing.assert_allclose(1 / policy.state_scale.numpy(), numbers["qpos_std"], rtol=1e-6)
    sample = policy.act(observations(), Sampling(greedy=True), [np.random.default_rng(i) for i in range(2)])
    assert sample.actions.shape == (2, made.CHUNK, made.ACTION)
    assert bool((sample.actions >= numbers["action_min"] - 1e-5).all())
    assert bool((sample.actions <= numbers["action_max"] + 1e-5).all())


def test_images_are_prepared_as_in_the_published_evaluation(tmp_path: Path) -> None:
    made.write_whole(tmp_path / "run", made.published_model())
    vision = imported(tmp_path / "run", tmp_path / "policy").config.vision
    assert (vision.frame, vision.crop, vision.pad, vision.resample) == ((180, 320), 0.95, True, "bicubic")


def same(first: TinyVLA, second: TinyVLA) -> bool:
    others = second.state_dict()
    return first.config == second.config and all(torch.equal(x, others[name]) for name, x in first.state_dict().items())


def test_every_layout_that_the_training_leaves_gives_the_same_policy(tmp_path: Path) -> None:
    run = tmp_path / "llava_pythia_lora"
    made.write_lora(run, made.published_model())
    policy = imported(run, tmp_path / "policy")

    # A checkpoint-N: only the adapter in it, and the rest as the conversion from DeepSpeed leaves it, adapter included.
    step = run / "checkpoint-20"
    step.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, step)
    adapter = load_file(run / "adapter_model.safetensors")
    rest = torch.load(run / "non_lora_trainables.bin", weights_only=True)
    (step / "non_lora_trainables.bin").mkdir()
    inner = {k.replace(".weight", ".default.weight"): v for k, v in adapter.items()}
    torch.save(rest | inner, step / "non_lora_trainables.bin" / "pytorch_model.bin")
    assert same(imported(step, tmp_path / "step"), policy)

    # Older peft: no base_layer in names, the adapter as .bin.
    older = tmp_path / "older"
    shutil.copytree(run, older, ignore=shutil.ignore_patterns("checkpoint-*"))
    torch.save(adapter, older / "adapter_model.bin")
    (older / "adapter_model.safetensors").unlink()
    torch.save({k.replace(".base_layer.", "."): v for k, v in rest.items()}, older / "non_lora_trainables.bin")
    assert same(imported(older, tmp_path / "from_older"), policy)

    # Only what was trained, the rest in the Llava-Pythia model that it started from, in pieces, with its language head.
    base = tmp_path / "base"
    base.mkdir()
    weights = {k: v.contiguous() for k, v in made.published_model().state_dict().items() if "embed_out" not in k}
    weights["embed_out.weight"] = torch.zeros(made.VOCABULARY, made.WIDTH)
    pieces = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for piece in set(pieces.values()):
        save_file({k: v for k, v in weights.items() if pieces[k] == piece}, base / piece)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": pieces}))
    shutil.move(older / "tokenizer.json", base / "tokenizer.json")
    trained = {k: v for k, v in rest.items() if "embed_out" in k or "mm_projector" in k}
    torch.save(trained, older / "non_lora_trainables.bin")
    assert same(imported(older, tmp_path / "with_base", base), policy)


def test_half_precision_is_widened_and_constants_are_left_out(tmp_path: Path) -> None:
    model = made.published_model()
    made.write_whole(tmp_path / "run", model)
    weights = {k: v.bfloat16() for k, v in model.state_dict().items()}
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    weights["gpt_neox.layers.1.attention.rotary_emb.inv_freq"] = torch.ones(2)
    weights["gpt_neox.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    (tmp_path / "run" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "run" / "pytorch_model.bin")
    report = import_tinyvla(tmp_path / "run", tmp_path / "policy", cameras=made.CAMERAS)
    # Never read: the tower's third layer (16 tensors), its last norm (2), three constants.
    assert report.unread == 16 + 2 + 3
    assert report.tensors == len(model.state_dict()) - 18
    saved = load_file(tmp_path / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert torch.equal(saved["language.embed_in.weight"], weights["gpt_neox.embed_in.weight"].float())


def test_the_command_imports_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write_lora(tmp_path / "run", made.published_model())
    arguments = [str(tmp_path / "run"), str(tmp_path / "new" / "policy"), "--cameras", *made.CAMERAS]
    assert main(["import", "tinyvla", *arguments, "--frame", "None"]) == 0
    assert "an adapter merged into 26 of them" in capsys.readouterr().out
    policy = load_policy(tmp_path / "new" / "policy")
    assert isinstance(policy, TinyVLA)
    assert (policy.cameras, policy.config.vision.frame) == (made.CAMERAS, None)
    assert main(["import", "tinyvla", *arguments]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["import", "openvla", *arguments]) == 2
    assert "expected 'tinyvla'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["whole", "siglip"])
def test_an_imported_policy_acts_as_the_published_sampler(tmp_path: Path, kind: str) -> None:
    tower = "siglip" if kind == "siglip" else "clip"
    model = made.published_model(kind=tower)
    made.write_whole(tmp_path / "run", model, tower)
    policy, model = imported(tmp_path / "run", tmp_path / "policy"), model.double()
    batch, seeds = observations(), (4, 5)
    acted = policy.act(batch, Sampling(greedy=True), [np.random.default_rng(seed) for seed in seeds])
    scheduler = DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(10)
    shape = (11, made.CHUNK, made.ACTION)
    x = torch.from_numpy(
        np.stack([np.random.default_rng(s).standard_normal(shape, np.float32)[0] for s in seeds])
    ).double()
    numbers = made.statistics()
    with torch.no_grad():
        given = torch.cat([reference_condition(model, policy, row(batch, i)) for i in range(2)])
        for t in scheduler.timesteps:
            noise = made.predicted_noise(model, x, t.expand(2), given)
            x = scheduler.step(noise, t, x).prev_sample
    low, high = numbers["action_min"], numbers["action_max"]
    np.testing.assert_allclose(acted.actions, (x.numpy() + 1) / 2 * (high - low) + low, atol=2e-3)
