"""A small, randomly initialised OpenVLA-OFT and the files that it is published as.

Its forward pass is written from timm's and OpenVLA's published structure with plain matrix products, one observation at a
time and without padding, apart from ours, so that both can be compared.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from simplevla.policies.normalization import Statistics

DINO = {"width": 48, "layers": 3, "heads": 16, "mlp": 192}
SIGLIP = {"width": 32, "layers": 3, "heads": 16, "mlp": 40}
WIDTH, LAYERS, LLAMA_HEADS, MLP = 32, 2, 2, 48
IMAGE, PATCH, VOCABULARY, PADDED = 28, 14, 32064, 64
CHUNK, ACTION, STATE = 8, 7, 8
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]
KEY = "libero_object_no_noops"


def shapes(proprio: bool = False, image: int = IMAGE) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint, the ends of the towers included."""
    found: dict[str, tuple[int, ...]] = {}
    patches = (image // PATCH) ** 2
    for tower, sizes in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        prefix, width, mlp = f"vision_backbone.{tower}.", sizes["width"], sizes["mlp"]
        found |= {
            f"{prefix}patch_embed.proj.weight": (width, 3, PATCH, PATCH),
            f"{prefix}patch_embed.proj.bias": (width,),
            f"{prefix}pos_embed": (1, patches, width),
            f"{prefix}norm.weight": (width,),
            f"{prefix}norm.bias": (width,),
        }
        if tower == "featurizer":
            found |= {f"{prefix}cls_token": (1, 1, width), f"{prefix}reg_token": (1, 4, width)}
        else:
            found |= {f"{prefix}attn_pool.latent": (1, 1, width), f"{prefix}attn_pool.q.weight": (width, width)}
        for i in range(sizes["layers"]):
            block = f"{prefix}blocks.{i}."
            for name, out, into in (
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", mlp, width),
                ("mlp.fc2", width, mlp),
            ):
                found |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
            for name in ("norm1", "norm2"):
                found |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
            if tower == "featurizer":
                found |= {f"{block}ls1.scale_factor": (width,), f"{block}ls2.scale_factor": (width,)}
    joined = DINO["width"] + SIGLIP["width"]
    linears = {
        "projector.fc1": (4 * joined, joined),
        "projector.fc2": (WIDTH, 4 * joined),
        "projector.fc3": (WIDTH, WIDTH),
    }
    if proprio:
        linears |= {"proprio_projector.fc1": (WIDTH, STATE), "proprio_projector.fc2": (WIDTH, WIDTH)}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    llama = "language_model.model."
    found |= {
        f"{llama}embed_tokens.weight": (VOCABULARY, WIDTH),
        f"{llama}norm.weight": (WIDTH,),
        "language_model.lm_head.weight": (VOCABULARY, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"{llama}layers.{i}."
        found |= {f"{layer}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{layer}mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
        found |= {f"{layer}mlp.down_proj.weight": (WIDTH, MLP)}
        found |= {f"{layer}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return found


def tensors(seed: int = 0, proprio: bool = False, image: int = IMAGE) -> dict[str, Tensor]:
    """Everything random, also what is usually initialised to 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes(proprio, image).items():
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) in (2, 4) else 0.3
        made[name] = torch.randn(shape, generator=generator) * (1.0 if "embed_tokens" in name else spread)
    return made


def statistics(seed: int = 0) -> dict[str, Any]:
    """As dataset_statistics.json: the gripper from 0 (closed) to 1 (open), not normalised."""
    rng = np.random.default_rng(seed)
    parts = {}
    for part, size in (("action", ACTION), ("proprio", STATE)):
        low, high = rng.uniform(-1, -0.3, size), rng.uniform(0.2, 1, size)
        inner = [low + 0.1, high - 0.1]
        measures = [np.zeros(size), np.full(size, 0.3), low, high, *inner]
        parts[part] = dict(
            zip(("mean", "std", "min", "max", "q01", "q99"), (x.tolist() for x in measures), strict=True)
        )
    for name, value in (("mean", 0.4), ("std", 0.5), ("min", 0.0), ("max", 1.0), ("q01", 0.0), ("q99", 1.0)):
        parts["action"][name][-1] = value
    parts["action"]["mask"] = [True] * (ACTION - 1) + [False]
    return {KEY: {**parts, "num_transitions": 100, "num_trajectories": 5}}


def published_units(ours: Statistics) -> dict[str, Any]:
    """Statistics of LIBERO demonstrations as dataset_statistics.json has them: the gripper from 0 (closed) to 1 (open)."""
    action = {name: list(values) for name, values in ours.action.items()}
    for low, high in (("min", "max"), ("q01", "q99")):
        action[low][-1], action[high][-1] = 0.0, 1.0
    action["mean"][-1], action["std"][-1] = (1 - action["mean"][-1]) / 2, action["std"][-1] / 2
    return {KEY: {"action": {**action, "mask": [True] * (ACTION - 1) + [False]}, "proprio": ours.state}}


def tokenizer() -> Tokenizer:
    """Llama's vocabulary in size and in the places that count; letters are one token each, and a few words."""
    words = ["▁In", ":", "▁What", "▁action", "▁should", "▁the", "▁robot", "▁take", "▁to", "?", "<0x0A>", "Out"]
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)] + ["I", "O", "W", "_", ",", "'"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces = sorted({*words, *letters, *(word[:n] for word in words for n in range(1, len(word) + 1))} - {"▁"})
    pieces = [piece for piece in pieces if piece not in ("<0x0A>",) and not (piece.startswith("<"))]
    vocabulary |= {piece: 300 + i for i, piece in enumerate(pieces)}
    vocabulary |= {f"<0x{i:02X}>": 3 + i for i in range(256)}
    vocabulary["▁"] = 29871
    taken = set(vocabulary.values())
    vocabulary |= {f"unused{i}": i for i in range(32000) if i not in taken}
    merges = [(word[:n], word[n]) for word in words if word != "<0x0A>" for n in range(1, len(word))]
    made = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", "<PAD>")])
    return made


def config() -> dict[str, Any]:
    """As the published config.json, without the links to code."""
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE, IMAGE],
        "n_action_bins": 256,
        "pad_to_multiple_of": PADDED,
        "text_config": {
            "model_type": "llama",
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": LLAMA_HEADS,
            "intermediate_size": MLP,
            "pad_token_id": 32000,
            "vocab_size": VOCABULARY,
        },
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "use_fused_vision_backbone": True,
    }


def write(
    folder: Path, made: dict[str, Tensor] | None = None, pieces: int = 3, image: int = IMAGE
) -> dict[str, Tensor]:
    """The folder as it is published, in pieces; returns the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(image=image) if made is None else made
    (folder / "config.json").write_text(json.dumps({**config(), "image_sizes": [image, image]}))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics()))
    (folder / "preprocessor_config.json").write_text(json.dumps({"means": MEANS, "stds": STDS}))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    places = {name: f"model-0000{1 + i % pieces}-of-0000{pieces}.safetensors" for i, name in enumerate(made)}
    for piece in sorted(set(places.values())):
        save_file({name: x.contiguous() for name, x in made.items() if places[name] == piece}, folder / piece)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return made


def linear(made: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    bias = made.get(f"{name}.bias")
    return x @ made[f"{name}.weight"].T + (0 if bias is None else bias)


def tower(made: dict[str, Tensor], prefix: str, sizes: dict[str, int], pixels: Tensor) -> Tensor:
    """[P, width] of normalised pixels [3, side, side]: patch tokens after the second-last block."""
    side = pixels.shape[1] // PATCH
    patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(side * side, -1)
    x = patches @ made[f"{prefix}patch_embed.proj.weight"].flatten(1).T + made[f"{prefix}patch_embed.proj.bias"]
    x = x + made[f"{prefix}pos_embed"][0]
    others = [made[f"{prefix}{name}"][0] for name in ("cls_token", "reg_token") if f"{prefix}{name}" in made]
    x = torch.cat([*others, x])
    width, heads = sizes["width"], sizes["heads"]
    for i in range(sizes["layers"] - 1):
        block = f"{prefix}blocks.{i}."
        scale = [made.get(f"{block}ls{k}.scale_factor", torch.ones(1, dtype=x.dtype)) for k in (1, 2)]
        inner = F.layer_norm(x, (width,), made[f"{block}norm1.weight"], made[f"{block}norm1.bias"], 1e-6)
        q, k, v = linear(made, f"{block}attn.qkv", inner).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / math.sqrt(width // heads)).softmax(dim=-1)
        x = x + scale[0] * linear(made, f"{block}attn.proj", (weights @ v).transpose(0, 1).reshape(len(x), width))
        inner = F.layer_norm(x, (width,), made[f"{block}norm2.weight"], made[f"{block}norm2.bias"], 1e-6)
        hidden = linear(made, f"{block}mlp.fc1", inner)
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + scale[1] * linear(made, f"{block}mlp.fc2", hidden)
    return x[len(torch.cat(others)) if others else 0 :]


def llama(made: dict[str, Tensor], x: Tensor, causal: bool = False) -> Tensor:
    """[L, WIDTH] outputs for embeddings [L, WIDTH]; every token sees every other, unless `causal`."""

    def norm(name: str, y: Tensor) -> Tensor:
        return y / (y.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * made[f"language_model.model.{name}.weight"]

    size = WIDTH // LLAMA_HEADS
    frequency = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
    cos, sin = (torch.cat([f(angle), f(angle)], dim=-1) for f in (torch.cos, torch.sin))

    def turned(y: Tensor) -> Tensor:
        return y * cos + torch.cat([-y[..., size // 2 :], y[..., : size // 2]], dim=-1) * sin

    for i in range(LAYERS):
        layer = f"language_model.model.layers.{i}."
        inner = norm(f"layers.{i}.input_layernorm", x)
        q, k, v = (
            linear(made, f"{layer}self_attn.{name}_proj", inner).view(len(x), LLAMA_HEADS, size).transpose(0, 1)
            for name in "qkv"
        )
        scores = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(size)
        if causal:
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
        x = x + linear(
            made, f"{layer}self_attn.o_proj", (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), WIDTH)
        )
        inner = norm(f"layers.{i}.post_attention_layernorm", x)
        gate = linear(made, f"{layer}mlp.gate_proj", inner)
        x = x + linear(
            made, f"{layer}mlp.down_proj", gate / (1 + (-gate).exp()) * linear(made, f"{layer}mlp.up_proj", inner)
        )
    return norm("norm", x)


def action_logits(
    made: dict[str, Tensor],
    views: list[np.ndarray],
    prompt: list[int],
    state: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """float64 [CHUNK * ACTION, 256] of one observation.

    Args:
        views: prepared pictures uint8 [side, side, 3], one per camera.
        prompt: token ids, <s> not among them.
        state: normalised, of a policy that reads it.
    """
    made = {name: x.double() for name, x in made.items()}
    seen = []
    for view in views:
        both = []
        for (name, sizes), mean, std in zip(
            (("featurizer", DINO), ("fused_featurizer", SIGLIP)), MEANS, STDS, strict=True
        ):
            pixels = (torch.from_numpy(view).double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
            both.append(tower(made, f"vision_backbone.{name}.", sizes, pixels.permute(2, 0, 1)))
        x = torch.cat(both, dim=1)
        for name in ("projector.fc1", "projector.fc2"):
            x = F.gelu(linear(made, name, x))
        seen.append(linear(made, "projector.fc3", x))
    if state is not None:
        hidden = F.gelu(linear(made, "proprio_projector.fc1", state.double()[None]))
        seen.append(linear(made, "proprio_projector.fc2", hidden))
    words = made["language_model.model.embed_tokens.weight"]
    units = CHUNK * ACTION
    sequence = [words[[1]], *seen, words[prompt], torch.zeros(units, WIDTH, dtype=torch.float64), words[[2]]]
    before = sum(len(part) for part in sequence[:-2])
    outputs = llama(made, torch.cat(sequence), causal)[before - 1 : before - 1 + units]
    return (outputs @ made["language_model.lm_head.weight"].T)[:, 31744:32000]
