"""A small SmolVLA in LeRobot's layouts, with what LeRobot 0.6.1 computed with it (benchmarks/experiments/smolvla_parity.py).

Nothing but shapes, settings and outputs is recorded: weights and inputs follow from their names by a formula.
"""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded/smolvla.json").read_text())
CASE = RECORDED["case"]
PROMPTS: list[str] = CASE["prompts"]
FEATURES: list[str] = [name for name in CASE["cameras"] if name not in CASE["missing"]]
CAMERAS = dict(zip(("front", "wrist"), FEATURES, strict=True))
NAMED = tuple(f"{name}={feature}" for name, feature in CAMERAS.items())
OUTPUTS = {name: torch.tensor(values) for name, values in RECORDED["outputs"].items()}
SPECIAL = ["<pad>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]


def numbers(name: str, shape: Iterable[int], seed: int = 0) -> Tensor:
    """float32, spread evenly over -1..1, as LeRobot's side made them."""
    shape = tuple(shape)
    start = zlib.crc32(f"{name} {seed}".encode()) % 10_000
    place = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(start + 0.7 * place) * 43758.5453) % 1 * 2 - 1).float().reshape(shape)


def tensors() -> dict[str, Tensor]:
    """The model file's, by LeRobot's names."""
    made = {}
    for name, shape in RECORDED["shapes"].items():
        values = numbers(name, shape, CASE["seed"])
        if values.ndim == 1:
            made[name] = 0.3 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            made[name] = 1.5 * values[0].numel() ** -0.5 * values
    return made


def statistics() -> dict[str, Tensor]:
    made = {}
    for name, size in (("observation.state", CASE["state_dim"]), ("action", CASE["action_dim"])):
        made |= {
            f"{name}.mean": numbers(f"{name}.mean", (size,)),
            f"{name}.std": numbers(f"{name}.std", (size,)).abs() + 0.5,
        }
    return made


def inputs() -> dict[str, Tensor]:
    rows, length, padded = len(PROMPTS), CASE["config"]["chunk_size"], CASE["config"]["max_action_dim"]
    ends = torch.tensor([length - row % length for row in range(rows)])
    return {
        **{name: (127.5 + 127.5 * numbers(name, (rows, *CASE["pixels"], 3))).to(torch.uint8) for name in FEATURES},
        "state": 2 * numbers("state", (rows, CASE["state_dim"])),
        "actions": 2 * numbers("actions", (rows, length, CASE["action_dim"])),
        "mask": torch.arange(length)[None] < ends[:, None],
        "noise": 2 * numbers("noise", (rows, length, padded)),
        "times": numbers("times", (rows,)).abs() * 0.999 + 0.001,
    }


def tokenizer() -> Tokenizer:
    words = sorted({word for prompt in PROMPTS for word in prompt.split(" ")})
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, "\n", *words])}, SPECIAL[0]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    return made


def write_backbone(folder: Path) -> Path:
    """The backbone's folder, without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(RECORDED["backbone"]))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    return folder


def write(folder: Path, old: bool = False, **changes: Any) -> Path:
    """The policy's folder as LeRobot saves it today, or as it did, with `changes` in its config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(RECORDED["config"] | changes))
    made = tensors()
    if old:
        known = statistics()
        for measure in ("mean", "std"):
            made[f"normalize_inputs.buffer_observation_state.{measure}"] = known[f"observation.state.{measure}"]
            for group in ("normalize_targets", "unnormalize_outputs"):
                made[f"{group}.buffer_action.{measure}"] = known[f"action.{measure}"].clone()
    else:
        for name in ("preprocessor", "postprocessor"):
            (folder / f"policy_{name}.json").write_text(json.dumps(RECORDED[name]))
            files = [step["state_file"] for step in RECORDED[name]["steps"] if "state_file" in step]
            save_file(statistics(), folder / files[0])
    save_file(made, folder / "model.safetensors")
    return folder
