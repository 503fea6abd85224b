"""A small, randomly initialised TinyVLA as its own code builds it, and the files that its training writes.

The names of modules are the published ones, since they name the tensors; its forward pass is written from the published
structure, apart from ours, so that both can be compared.
"""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

WIDTH, LAYERS, HEADS, VOCABULARY = 16, 2, 2, 320
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
STATE, ACTION, CHUNK = 5, 4, 8
CHANNELS, KERNEL, TIME = (8, 16, 24), 5, 16
RANK, ALPHA = 2, 8
CAMERAS = ("left", "right")


class Part(nn.Module):
    """Modules under given names."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def convolution_block(width_in: int, width_out: int) -> nn.Module:
    convolution = nn.Conv1d(width_in, width_out, KERNEL, padding=KERNEL // 2)
    return Part(block=nn.Sequential(convolution, nn.GroupNorm(8, width_out), nn.Mish()))


def residual_block(width_in: int, width_out: int) -> nn.Module:
    return Part(
        blocks=nn.ModuleList([convolution_block(width_in, width_out), convolution_block(width_out, width_out)]),
        cond_encoder=nn.Sequential(nn.Mish(), nn.Linear(TIME + WIDTH, 2 * width_out)),
        residual_conv=nn.Conv1d(width_in, width_out, 1) if width_in != width_out else nn.Identity(),
    )


def level(width_in: int, width_out: int, resample: nn.Module) -> nn.Module:
    return nn.ModuleList([residual_block(width_in, width_out), residual_block(width_out, width_out), resample])


def published_unet() -> nn.Module:
    downs = [
        level(width_in, width_out, Part(conv=nn.Conv1d(width_out, width_out, 3, 2, 1)))
        for width_in, width_out in zip((ACTION, *CHANNELS[:-2]), CHANNELS[:-1], strict=True)
    ]
    downs.append(level(CHANNELS[-2], CHANNELS[-1], nn.Identity()))
    ups = [
        level(
            2 * CHANNELS[i], CHANNELS[i - 1], Part(conv=nn.ConvTranspose1d(CHANNELS[i - 1], CHANNELS[i - 1], 4, 2, 1))
        )
        for i in range(len(CHANNELS) - 1, 0, -1)
    ]
    return Part(
        norm_after_pool=nn.LayerNorm(WIDTH),
        combine=nn.Linear(WIDTH + STATE, WIDTH),
        mid_modules=nn.ModuleList(residual_block(CHANNELS[-1], CHANNELS[-1]) for _ in range(2)),
        diffusion_step_encoder=nn.Sequential(
            nn.Identity(), nn.Linear(TIME, 4 * TIME), nn.Mish(), nn.Linear(4 * TIME, TIME)
        ),
        up_modules=nn.ModuleList(ups),
        down_modules=nn.ModuleList(downs),
        final_conv=nn.Sequential(convolution_block(CHANNELS[0], CHANNELS[0]), nn.Conv1d(CHANNELS[0], ACTION, 1)),
    )


def vision_tower(kind: str) -> nn.Module:
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**TOWER))
    return SiglipVisionModel(SiglipVisionConfig(**TOWER))


def published_model(seed: int = 0, kind: str = "clip") -> nn.Module:
    """Everything random, also what is usually initialised to 0 or 1."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    language = GPTNeoXModel(GPTNeoXConfig(**sizes, intermediate_size=4 * WIDTH, vocab_size=VOCABULARY))
    language.vision_tower = Part(vision_model=vision_tower(kind))
    tower_width = TOWER["hidden_size"]
    language.mm_projector = nn.Sequential(nn.Linear(tower_width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    model = Part(gpt_neox=language, embed_out=published_unet())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.3
            parameter.normal_(0, spread, generator=generator)
    return model.eval()


def condition(model: Any, before: list[int], pixels: list[Tensor], after: list[int], state: Tensor) -> Tensor:
    """[1, WIDTH] of one observation: normalised pixels [1, 3, side, side] per view, token ids, state [1, STATE]."""
    language = model.gpt_neox
    views = []
    for view in pixels:
        layers = language.vision_tower.vision_model(view, output_hidden_states=True).hidden_states
        # A CLIP tower begins with its class token; SigLIP's has patch tokens only.
        class_tokens = layers[-2].shape[1] - (TOWER["image_size"] // TOWER["patch_size"]) ** 2
        views.append(language.mm_projector(layers[-2][:, class_tokens:]))
    words = [language.embed_in(torch.tensor([ids])) for ids in (before, after)]
    hidden = language(inputs_embeds=torch.cat([words[0], *views, words[1]], dim=1)).last_hidden_state
    head = model.embed_out
    return head.combine(torch.cat([head.norm_after_pool(hidden.mean(dim=1)), state], dim=-1))


def predicted_noise(model: Any, noisy: Tensor, steps: Tensor, given: Tensor) -> Tensor:
    """[B, CHUNK, ACTION] by the published U-Net."""
    head = model.embed_out
    frequencies = torch.exp(torch.arange(TIME // 2, dtype=torch.bfloat16) * -(math.log(10000) / (TIME // 2 - 1)))
    angles = steps[:, None] * frequencies[None]
    time = torch.cat([angles.sin(), angles.cos()], dim=-1).to(noisy.dtype)
    everything = torch.cat([head.diffusion_step_encoder(time), given], dim=-1)

    def residual(block: Any, x: Tensor) -> Tensor:
        scale, shift = block.cond_encoder(everything).view(len(x), 2, -1, 1).unbind(1)
        return block.blocks[1].block(scale * block.blocks[0].block(x) + shift) + block.residual_conv(x)

    x, kept = noisy.movedim(-1, -2), []
    for first, second, resample in head.down_modules:
        x = residual(second, residual(first, x))
        kept.append(x)
        x = resample.conv(x) if hasattr(resample, "conv") else x
    for block in head.mid_modules:
        x = residual(block, x)
    for first, second, resample in head.up_modules:
        x = residual(second, residual(first, torch.cat([x, kept.pop()], dim=1)))
        x = resample.conv(x)
    return head.final_conv[1](head.final_conv[0].block(x)).movedim(-1, -2)


TOWERS: dict[str, dict[str, Any]] = {
    "clip": {
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "model_type": "llava_pythia_clip_vision_model",
        "vision_model_name_or_path": "openai/clip-vit-large-patch14-336",
    },
    "siglip": {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-06,
        "model_type": "llava_pythia_siglip_vision_model",
        "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
    },
}


def config(kind: str = "clip") -> dict[str, Any]:
    """As the training's config.json."""
    return {
        "architectures": ["LlavaPythiaForCausalLM"],
        "model_type": "llava_pythia",
        "action_head_type": "droid_diffusion",
        "action_dim": ACTION,
        "state_dim": STATE,
        "chunk_size": CHUNK,
        "use_state": True,
        "window_size": 6,
        "concat": "token_cat",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "vocab_size": VOCABULARY,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-05,
        "use_parallel_residual": True,
        "max_position_embeddings": 2048,
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_padding_side": "right",
        "vision_config": {
            "mm_projector": {
                "mm_projector_type": "mlp2x_gelu",
                "mm_hidden_size": TOWER["hidden_size"],
                "hidden_size": WIDTH,
            },
            "vision_tower": {
                **TOWER,
                **TOWERS[kind],
                "mm_vision_select_feature": "patch",
                "mm_vision_select_layer": -2,
            },
        },
    }


def statistics(seed: int = 0) -> dict[str, np.ndarray]:
    """As the training's dataset_stats.pkl, before pickling."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1, 0, ACTION).astype(np.float32)
    return {
        "action_mean": rng.normal(size=ACTION).astype(np.float32),
        "action_std": rng.uniform(0.01, 1, ACTION).astype(np.float32),
        "action_min": low - 0.0001,
        "action_max": low + rng.uniform(0.5, 2, ACTION).astype(np.float32) + 0.0001,
        "qpos_mean": rng.normal(size=STATE).astype(np.float32),
        "qpos_std": rng.uniform(0.01, 1, STATE).astype(np.float32),
        "example_qpos": rng.normal(size=(7, STATE)).astype(np.float32),
    }


def tokenizer() -> Tokenizer:
    """Byte-level BPE with GPT-NeoX's special tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken("<|endoftext|>", special=True), AddedToken("<|padding|>", special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["push the red block to the user and the assistant"], trainer)
    return made


COLOURS = {
    "clip": {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "siglip": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


def write_settings(folder: Path, kind: str = "clip") -> None:
    """All files without weights, and without the adapter's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(kind)))
    (folder / "dataset_stats.pkl").write_bytes(pickle.dumps(statistics()))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "preprocessor_config.json").write_text(json.dumps({**COLOURS[kind], "size": {"shortest_edge": 28}}))


def write_whole(folder: Path, model: nn.Module, kind: str = "clip") -> None:
    """What a training without LoRA writes."""
    write_settings(folder, kind)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def adapted_modules(model: nn.Module) -> list[str]:
    """Every linear layer of vision and language, as the training's `lora_module "vit llm"` chooses."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if "embed_out" not in name and "mm_projector" not in name]


def write_lora(folder: Path, model: nn.Module, seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """What a training with LoRA writes, by peft itself; returns each adapted module's A and B. Changes `model`."""
    targets = adapted_modules(model)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.05, bias="none", target_modules=targets)
    wrapped = peft.get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(wrapped.named_parameters())
    lora = {name: tensor for name, tensor in parameters.items() if "lora_" in name}
    with torch.no_grad():
        for tensor in lora.values():
            tensor.normal_(0, 0.3, generator=generator)
    write_settings(folder)
    wrapped.save_pretrained(str(folder))
    others = {name: tensor.detach().clone() for name, tensor in parameters.items() if name not in lora}
    torch.save(others, folder / "non_lora_trainables.bin")
    prefix = "base_model.model."
    return {
        target: tuple(lora[f"{prefix}{target}.lora_{x}.default.weight"].detach().clone() for x in "AB")  # type: ignore[misc]
        for target in targets
    }
