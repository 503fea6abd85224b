"""A small OpenVLA-OFT on LIBERO, end to end: `PYTHONPATH=tests python -m benchmarks.experiments.openvla_small`.

A randomly initialised checkpoint of a few million parameters is written as published and imported; then demonstrations of
one task, SFT, RL, and both policies on the held-out states. Finished stages under runs/openvla_small are kept. Writes
docs/results/openvla_small.json and .md.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import made_openvla_checkpoint as made
from benchmarks.support.machine import this_machine
from simplevla.adapters.load import load_policy
from simplevla.config import EvalConfig, OptimizerConfig, SamplingConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.compare import compare
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.recipes import libero
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

RUN = Path(__file__).parents[2] / "runs" / "openvla_small"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
IMAGE = 84
TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
SUITE = SuiteConfig(name="libero_object", visuals="lite", stepping="fast", image_size=IMAGE, tasks=(TASK,))
SPLITS: dict[Literal["train", "test"], str] = {"test": "held out", "train": "trained on"}
SFT_CONFIG = SFTConfig(
    batches=1500, batch_size=32, optimizer=OptimizerConfig(lr=5e-4, warmup_steps=50), shift_pixels=0, validate_every=500
)
TRAIN_CONFIG = TrainConfig(
    suite=SUITE,
    updates=8,
    sampling=SamplingConfig(groups=8, group_size=8, temperature=1.0),
    optimizer=OptimizerConfig(lr=1e-4, warmup_steps=4),
    rollout=libero.train().rollout,
    microbatch_decisions=64,
    eval_every=4,
    eval_episodes_per_task=10,
)


def checkpoint(folder: Path, dataset: LeRobotDataset) -> None:
    """As published, with the dataset's statistics in the published units."""
    made.DINO = {"width": 96, "layers": 4, "heads": 16, "mlp": 192}
    made.SIGLIP = {"width": 64, "layers": 4, "heads": 16, "mlp": 128}
    made.WIDTH, made.LAYERS, made.LLAMA_HEADS, made.MLP = 96, 4, 4, 256
    tensors = made.tensors(proprio=True, image=IMAGE)
    for name, tensor in tensors.items():
        # As models are initialised, not as the tests' exaggerate: norms at 1, biases at 0, small weights.
        norm = ("norm" in name and name.endswith("weight")) or "scale_factor" in name
        tensor.copy_(tensor.sign().abs() if norm else 0 * tensor if name.endswith("bias") else 0.3 * tensor)
    made.write(folder, tensors, image=IMAGE)
    (folder / "dataset_statistics.json").write_text(json.dumps(made.published_units(dataset.statistics)))


def main() -> None:
    if not (RUN / "demos").exists():
        generate(replace(libero.demos(), suite=SUITE, episodes=30), RUN / "demos")
    dataset = LeRobotDataset(RUN / "demos")
    if not (RUN / "base").exists():
        checkpoint(RUN / "published", dataset)
        import_openvla_oft(RUN / "published", RUN / "base", cameras=("fixed", "wrist"))
    policy = load_policy(RUN / "base")
    parameters = sum(p.numel() for p in policy.parameters())
    if not (RUN / "sft" / "policy").exists():
        settings = replace(SFT_CONFIG, dataset=str(RUN / "demos"), policy=str(RUN / "base"), suite=SUITE)
        sft(settings, RUN / "sft", resume=(RUN / "sft" / "config.json").exists())
    if not (RUN / "rl" / "policy").exists():
        settings = replace(TRAIN_CONFIG, policy=str(RUN / "sft" / "policy"))
        outcome = train(settings, RUN / "rl", resume=(RUN / "rl" / "config.json").exists())
        print(outcome.message)
    results = {
        (name, split): evaluate(RUN / name / "policy", SUITE, libero.train().rollout, EvalConfig(split=split))
        for name in ("sft", "rl")
        for split in SPLITS
    }
    paired = {split: compare(results["sft", split], results["rl", split]) for split in SPLITS}
    rows = [row for row in read_rows(RUN / "rl") if "train_success" in row]
    summary = {
        "parameters": parameters,
        "success": {
            f"{name} {split}": [r.overall.solved, r.overall.n, r.overall.low, r.overall.high]
            for (name, split), r in results.items()
        },
        "mcnemar_p": {split: paired[split].overall.p_value for split in SPLITS},
        "sampled_in_training": [row["train_success"] for row in rows],
        "greedy_on_train_states": [row["eval_success"] for row in read_rows(RUN / "rl") if "eval_success" in row],
        "minutes_rl": read_rows(RUN / "rl")[-1].get("elapsed_s", 0.0) / 60,
        "commit": commit(),
        "commit_of_training": read_json(RUN / "rl" / "environment.json")["commit"],
        "machine": this_machine(),
    }
    write_json(RESULTS / "openvla_small.json", summary)
    lines = "\n".join(
        f"| {name} | {SPLITS[split]} | {100 * r.overall.rate:.0f} % ({100 * r.overall.low:.0f} to {100 * r.overall.high:.0f}) | {r.overall.n} |"
        for (name, split), r in results.items()
    )
    rate = {key: f"{100 * result.overall.rate:.0f} %" for key, result in results.items()}
    held_out = results["sft", "test"].overall
    sampled = ", ".join(f"{100 * x:.0f}" for x in summary["sampled_in_training"])
    text = f"""# A small OpenVLA-OFT on LIBERO, end to end

RL takes success from {rate["sft", "test"]} to {rate["rl", "test"]} on held-out initial states (n = {held_out.n}), and from {rate["sft", "train"]} to {rate["rl", "train"]} on those trained on (one training seed).

| policy | initial states | success (95 % Wilson) | n |
|---|---|---|---|
{lines}

McNemar's exact test, SFT against RL on the same states: p = {paired["test"].overall.p_value:.2g} held out, {paired["train"].overall.p_value:.2g} trained on.

Sampled success in training, update by update, %: {sampled}.

- Command: `PYTHONPATH=tests python -m benchmarks.experiments.openvla_small`. Machine: {summary["machine"]}. Data: `openvla_small.json`.
- Commit {summary["commit"]}, trained at {summary["commit_of_training"]}.
- One task of libero_object (`{TASK}`), `lite` and `fast`. Two cameras of {IMAGE} pixels, and the state is read. Success is greedy.
- {parameters / 1e6:.1f} M random parameters, written in the published layout and imported. 30 demonstrations, {SFT_CONFIG.batches} SFT batches of {SFT_CONFIG.batch_size}.
- {TRAIN_CONFIG.updates} RL updates of {TRAIN_CONFIG.sampling.groups} groups of {TRAIN_CONFIG.sampling.group_size}, in {summary["minutes_rl"]:.0f} minutes.
"""
    write_atomically(RESULTS / "openvla_small.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
