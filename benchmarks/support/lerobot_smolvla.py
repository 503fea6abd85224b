"""LeRobot's own SmolVLA, in its environment: makes small policies with what they compute, or acts from exported folders.

    python lerobot_smolvla.py make CASES.json SCRATCH
    python lerobot_smolvla.py act CASES.json SCRATCH

Needs lerobot[smolvla] and nothing of this package. Each case has a folder in SCRATCH, with `backbone`, `policy`, and `inputs` and
`outputs` as safetensors.
"""

import json
import math
import sys
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

SPECIAL = ["<pad>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]


def numbers(name: str, shape: Iterable[int], seed: int = 0) -> torch.Tensor:
    """float32 of this shape, spread evenly over -1..1 by a formula of the name, so that a test can make them again."""
    shape = tuple(shape)
    start = zlib.crc32(f"{name} {seed}".encode()) % 10_000
    place = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(start + 0.7 * place) * 43758.5453) % 1 * 2 - 1).float().reshape(shape)


def weight(name: str, shape: Iterable[int], seed: int) -> torch.Tensor:
    """One of the policy's tensors, of a size that keeps activations about 1."""
    values = numbers(name, shape, seed)
    if values.ndim == 1:
        return 0.3 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return 1.5 * values[0].numel() ** -0.5 * values


def write_backbone(folder: Path, sizes: dict[str, Any], prompts: list[str]) -> None:
    """Everything of a small SmolVLM2 but its weights; each word of the prompts is a token."""
    words = sorted({word for prompt in prompts for word in prompt.split(" ")})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, "\n", *words])}, SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    named = {"fake_image_token": SPECIAL[1], "global_image_token": SPECIAL[2], "image_token": SPECIAL[3]}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        extra_special_tokens={**named, "end_of_utterance_token": SPECIAL[4]},
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=fast,
        video_processor=SmolVLMVideoProcessor(),
        chat_template="x",
    )
    processor.save_pretrained(folder)
    text = {"model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, **sizes["text"]}
    SmolVLMConfig(
        vision_config=sizes["vision"],
        text_config=text,
        scale_factor=sizes["scale_factor"],
        image_token_id=tokenizer.token_to_id("<image>"),
        pad_token_id=0,
    ).save_pretrained(folder)


def make_policy(folder: Path, case: dict[str, Any]) -> tuple[SmolVLAPolicy, dict[str, Any]]:
    """A policy with other than zeros and ones in all its weights, and its statistics."""
    pictures = {name: PolicyFeature(FeatureType.VISUAL, (3, *case["pixels"])) for name in case["cameras"]}
    config = SmolVLAConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (case["state_dim"],)), **pictures},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (case["action_dim"],))},
        vlm_model_name=str(folder / "backbone"),
        device="cpu",
        **case["config"],
    )
    policy = SmolVLAPolicy(config).eval()
    for name, parameter in policy.named_parameters():
        parameter.data = weight(name, parameter.shape, case["seed"])
    stats = {
        name: {"mean": numbers(f"{name}.mean", (size,)), "std": numbers(f"{name}.std", (size,)).abs() + 0.5}
        for name, size in (("observation.state", case["state_dim"]), ("action", case["action_dim"]))
    }
    return policy, stats


def make_inputs(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    rows, config = len(case["prompts"]), case["config"]
    length, padded = config["chunk_size"], config.get("max_action_dim", 32)
    present = [name for name in case["cameras"] if name not in case["missing"]]
    ends = torch.tensor([length - row % length for row in range(rows)])
    return {
        **{name: (127.5 + 127.5 * numbers(name, (rows, *case["pixels"], 3))).to(torch.uint8) for name in present},
        "state": 2 * numbers("state", (rows, case["state_dim"])),
        "actions": 2 * numbers("actions", (rows, length, case["action_dim"])),
        "mask": torch.arange(length)[None] < ends[:, None],
        "noise": 2 * numbers("noise", (rows, length, padded)),
        "times": numbers("times", (rows,)).abs() * 0.999 + 0.001,
    }


def observed(inputs: dict[str, torch.Tensor], prompts: list[str]) -> dict[str, Any]:
    """A batch as LeRobot's loaders make it."""
    pictures = {
        name: x.permute(0, 3, 1, 2).float() / 255 for name, x in inputs.items() if name.startswith("observation")
    }
    return {**pictures, "observation.state": inputs["state"], "action": inputs["actions"], "task": prompts}


@torch.no_grad()
def compute(
    policy: SmolVLAPolicy, processors: tuple[Any, Any], inputs: dict[str, Any], prompts: list[str]
) -> dict[str, Any]:
    """Loss, velocity of the noisy actions of the loss, and ten-step (or so) actions."""
    before, after = processors
    batch = before(observed(inputs, prompts))
    loss, _ = policy.forward(dict(batch, action_is_pad=~inputs["mask"]), noise=inputs["noise"], time=inputs["times"])
    model = policy.model
    images, masks = policy.prepare_images(batch)
    words, valid = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    prefix, seen, attended = model.embed_prefix(images, masks, words, valid, state=policy.prepare_state(batch))
    _, cache = model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(seen, attended),
        position_ids=seen.cumsum(dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[prefix, None],
        use_cache=True,
    )
    t = inputs["times"][:, None, None]
    noisy = t * inputs["noise"] + (1 - t) * policy.prepare_action(batch)
    velocity = model.denoise_step(prefix_pad_masks=seen, past_key_values=cache, x_t=noisy, timestep=inputs["times"])
    actions = after(policy.predict_action_chunk(dict(batch), noise=inputs["noise"]))
    return {"loss": loss.reshape(1), "noisy": noisy, "velocity": velocity, "actions": actions}


def main(what: str, cases: Path, scratch: Path) -> None:
    torch.set_num_threads(1)
    for name, case in json.loads(cases.read_text()).items():
        folder = scratch / name
        if what == "make":
            write_backbone(folder / "backbone", case["backbone"], case["prompts"])
            policy, stats = make_policy(folder, case)
            processors = make_pre_post_processors(policy.config, dataset_stats=stats)
            policy.save_pretrained(folder / "policy")
            for processor in processors:
                processor.save_pretrained(folder / "policy")
            inputs = make_inputs(case)
            save_file(inputs, folder / "inputs.safetensors")
        else:
            inputs = load_file(folder / "inputs.safetensors")
            policy = SmolVLAPolicy.from_pretrained(folder / "exported").eval()
            processors = make_pre_post_processors(policy.config, pretrained_path=str(folder / "exported"))
        outputs = compute(policy, processors, inputs, case["prompts"])
        save_file({key: x.contiguous() for key, x in outputs.items()}, folder / f"{what}.safetensors")
        print(f"{name}: {what} done", flush=True)
    versions = {package: version(package) for package in ("lerobot", "torch", "transformers")}
    (scratch / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
