"""Does an imported SmolVLA compute what LeRobot's own computes, and LeRobot what an exported one does?

LeRobot 0.6.1 needs Python 3.12 and gets an environment of its own in ENV, which this command makes if it isn't there (5 GB):

    python -m benchmarks.experiments.smolvla_parity ENV --python PYTHON3.12

LeRobot makes small policies with random weights from local backbones; nothing is downloaded but packages. Writes
docs/results/smolvla_parity.json and .md, and tests/recorded/smolvla.json, the smallest of them for the tests.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.policies.smolvla.policy import SmolVLA
from simplevla.policies.smolvla.published import OLD, export_lerobot, import_smolvla
from simplevla.storage import write_atomically, write_json

OUT = Path("docs/results/smolvla_parity.json")
PEER = Path(__file__).parents[1] / "support/lerobot_smolvla.py"
LEROBOT = "lerobot[smolvla]==0.6.1"
COMMAND = "python -m benchmarks.experiments.smolvla_parity ENV --python PYTHON3.12"
CAMERAS = [f"observation.images.camera{number}" for number in (1, 2, 3)]
PROMPTS = ["push the red block to the left", "lift it", "open"]
BASE: dict[str, Any] = {
    "cameras": CAMERAS[:2],
    "missing": [],
    "pixels": [40, 48],
    "state_dim": 8,
    "action_dim": 7,
    "prompts": PROMPTS,
    "backbone": {
        "scale_factor": 2,
        "vision": {
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 32, "patch_size": 8},
        },
        "text": {
            **{"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-5},
        },
    },
    "config": {"chunk_size": 6, "n_action_steps": 4, "resize_imgs_with_padding": [32, 32], "num_vlm_layers": 4},
}
CHANGES: dict[str, dict[str, Any]] = {
    "two cameras": {},
    "one camera": {"cameras": CAMERAS[:1]},
    "three cameras, wide pictures": {"cameras": CAMERAS, "pixels": [24, 64]},
    "the first camera missing": {"missing": CAMERAS[:1]},
    "a camera missing, one empty": {"missing": CAMERAS[1:2], "config": {"empty_cameras": 1}},
    "special tokens, two empty": {"config": {"empty_cameras": 2, "add_image_special_tokens": True}},
    "one prompt": {"prompts": PROMPTS[1:2]},
    "prompts cut off": {"config": {"tokenizer_max_length": 5}},
    "joint attention everywhere": {"config": {"self_attn_every_n_layers": 1}},
    "joint attention every third layer": {"config": {"self_attn_every_n_layers": 3}},
    "cross-attention alone": {"config": {"self_attn_every_n_layers": -1}},
    "half the layers in the expert": {"config": {"self_attn_every_n_layers": -1, "num_expert_layers": 2}},
    "no cross-attention": {"config": {"attention_mode": "self_attn"}},
    "expert of half the width": {"config": {"expert_width_multiplier": 0.5}},
    "expert of the same width": {"config": {"expert_width_multiplier": 1.0}},
    "chunks of one action": {"config": {"chunk_size": 1, "n_action_steps": 1}},
    "chunks of 50 actions": {"config": {"chunk_size": 50, "n_action_steps": 50}},
    "largest state and action": {"state_dim": 32, "action_dim": 32},
    "paddings of 16, five steps": {"config": {"max_state_dim": 16, "max_action_dim": 16, "num_steps": 5}},
}
"""What is unlike `BASE` in each configuration."""
RECORDED = Path("tests/recorded/smolvla.json")
SMALLEST = {
    "missing": CAMERAS[2:],
    "cameras": CAMERAS,
    "pixels": [12, 20],
    "state_dim": 3,
    "action_dim": 2,
    "backbone": {
        "scale_factor": 2,
        "vision": {
            **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_size": 16, "patch_size": 4},
        },
        "text": {
            **{"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2},
            **{"num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5},
        },
    },
    "config": {
        **{"chunk_size": 3, "n_action_steps": 2, "resize_imgs_with_padding": [16, 16], "num_vlm_layers": 2},
        **{"max_state_dim": 4, "max_action_dim": 4, "empty_cameras": 1, "num_steps": 4},
    },
}
"""The policy that is recorded for the tests."""


def cases() -> dict[str, dict[str, Any]]:
    made = {"recorded": BASE | SMALLEST | {"name": "recorded for the tests", "seed": 0}}
    for number, (name, change) in enumerate(CHANGES.items()):
        config = BASE["config"] | change.get("config", {})
        made[f"{number:02}"] = BASE | change | {"name": name, "config": config, "seed": number}
    return made


class Given:
    """A generator whose first numbers are the noise that LeRobot had."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise.numpy()

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.noise.reshape(shape).astype(dtype)


def ensure_environment(folder: Path, python: str) -> Path:
    """The Python of LeRobot's environment, made if it isn't there."""
    made = folder / "bin/python"
    if not made.is_file():
        subprocess.run([python, "-m", "venv", folder], check=True)
    if subprocess.run([made, "-c", "import lerobot"], capture_output=True).returncode:
        subprocess.run([made, "-m", "pip", "install", "--quiet", LEROBOT], check=True)
    return made


def run_peer(python: Path, what: str, scratch: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, PEER, what, scratch / "cases.json", scratch], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"LeRobot's side failed: {done.stderr[-3000:]}")


def to_old_layout(new: Path, old: Path) -> None:
    """The same policy as folders were before LeRobot had processors: the statistics in the model file."""
    old.mkdir()
    (old / "config.json").write_bytes((new / "config.json").read_bytes())
    statistics = load_file(next(new.glob("policy_preprocessor_*.safetensors")))
    buffers = {name: statistics[f"{feature}.{measure}"].clone() for name, (feature, measure) in OLD.items()}
    save_file(load_file(new / "model.safetensors") | buffers, old / "model.safetensors")


def computed(policy: SmolVLA, case: dict[str, Any], inputs: dict[str, Tensor], noisy: Tensor) -> dict[str, Tensor]:
    """Loss, velocity and actions of our policy."""
    pictures = {camera: inputs[feature] for camera, feature in zip(policy.cameras, policy.config.features, strict=True)}
    batch = ObservationBatch(images=pictures, state=inputs["state"], instructions=case["prompts"])
    noise = {"noise": inputs["noise"][:, None], "times": inputs["times"][:, None]}
    with torch.no_grad():
        loss = policy.imitation_loss(batch, inputs["actions"], inputs["mask"], **noise)
        velocity = policy.velocity(policy(batch), noisy, inputs["times"])
    generators: list[Any] = [Given(row) for row in inputs["noise"]]
    actions = policy.act(batch, Sampling(greedy=True), generators).actions
    return {"loss": loss.reshape(1), "velocity": velocity, "actions": torch.from_numpy(actions)}


def differences(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of each output; of actions those that are executed."""
    found = {}
    for name in ("loss", "velocity", "actions"):
        theirs = expected[name][:, : got[name].shape[1]] if name == "actions" else expected[name]
        found[name] = float((got[name] - theirs).abs().max())
    return found


def compare(scratch: Path, number: str, case: dict[str, Any]) -> dict[str, Any]:
    """Differences of our policy from either layout, which is exported for LeRobot to act from."""
    folder = scratch / number
    to_old_layout(folder / "policy", folder / "old")
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "make.safetensors")
    names = [f"view{i}={name}" for i, name in enumerate(case["cameras"]) if name not in case["missing"]]
    found = []
    for layout in ("policy", "old"):
        ours = folder / f"ours_{layout}"
        import_smolvla(folder / layout, ours, cameras=names, tokenizer=folder / "backbone")
        policy = SmolVLA.load(ours)
        found.append(differences(computed(policy, case, inputs, expected["noisy"]), expected))
    export_lerobot(policy, folder / "exported")
    size = {name: float(expected[name].abs().mean()) for name in ("velocity", "actions")}
    return {"name": case["name"], **{key: max(one[key] for one in found) for key in found[0]}, "mean_size": size}


def record(folder: Path, case: dict[str, Any]) -> None:
    """Writes what the tests need to make the folder in `folder` again, and what LeRobot computes with it."""

    def read(file: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((folder / file).read_text().replace(str(folder / "backbone"), "backbone"))
        return read

    parts = {
        "config": read("policy/config.json"),
        "backbone": read("backbone/config.json"),
        **{name: read(f"policy/policy_{name}.json") for name in ("preprocessor", "postprocessor")},
        "shapes": {name: list(x.shape) for name, x in load_file(folder / "policy/model.safetensors").items()},
        "case": case,
        "outputs": {name: x.tolist() for name, x in load_file(folder / "make.safetensors").items()},
    }
    write_json(RECORDED, parts)


def page(result: dict[str, Any]) -> str:
    rows = result["rows"]
    largest = max(result[key] for key in ("loss", "velocity", "actions"))
    lines = [
        "# SmolVLA beside LeRobot's own",
        "",
        f"In {result['configurations']} configurations, imported policies differ from LeRobot's own SmolVLA by at most {largest:.0e}, and "
        f"LeRobot from exported ones by at most {result['exported']:.0e}.",
        "",
        "| configuration | loss | velocity | actions | exported |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['loss']:.1e} | {row['velocity']:.1e} | {row['actions']:.1e} | {row['exported']:.1e} |"
            for row in rows
        ),
        "",
        "- Figures are largest absolute differences in float32, of random weights in both. The last column is of LeRobot's outputs before "
        "the import and after the export.",
        f"- For comparison, a velocity is {np.mean([row['mean_size']['velocity'] for row in rows]):.1f} in size on average, an action "
        f"{np.mean([row['mean_size']['actions'] for row in rows]):.1f}.",
        "- Each policy is imported from today's layout, and with its statistics in the model file, as older folders have them.",
        "- The loss masks the steps after an episode's end. Actions are those of the whole sampler, in the robot's units.",
        f"- Versions on LeRobot's side: {', '.join(f'{name} {number}' for name, number in result['versions'].items())}.",
        f"- Command: `{result['command']}`. Commit {result['commit']}. Data: `smolvla_parity.json`.",
        f"- Machine: {result['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def main(environment: Path, python: str) -> None:
    peer = ensure_environment(environment, python)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "cases.json").write_text(json.dumps(cases()))
        run_peer(peer, "make", scratch)
        record(scratch / "recorded", cases()["recorded"])
        rows = [compare(scratch, number, case) for number, case in cases().items()]
        run_peer(peer, "act", scratch)
        for number, row in zip(cases(), rows, strict=True):
            before, after = (load_file(scratch / number / f"{what}.safetensors") for what in ("make", "act"))
            row["exported"] = max(differences(after, before).values())
            print(json.dumps(row))
        versions = json.loads((scratch / "versions.json").read_text())
    result = {
        "command": COMMAND,
        "commit": commit(),
        "machine": this_machine(),
        "versions": versions,
        "configurations": len(rows),
        **{key: max(row[key] for row in rows) for key in ("loss", "velocity", "actions", "exported")},
        "rows": rows,
    }
    write_json(OUT, result)
    write_atomically(OUT.with_suffix(".md"), page(result).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--python", default="python3.12")
    given = parser.parse_args()
    main(given.environment, given.python)
