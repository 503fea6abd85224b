"""Policies at a published size through whole commands: the shortest runs, their peak memory and time.

    python -m benchmarks.speed.policy_runs [tinyvla_s or smolvla_450m]

TinyVLA goes through `sft`, `train` and `continual`, in float32 and in bfloat16; SmolVLA through `sft`, `train`, `export lerobot` and
`import smolvla`, in float32. Each run is a process of its own. What is measured stays in runs/bench/SIZE_runs, where the
same command goes on after an interruption. Writes docs/results/SIZE_runs.json and .md.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.speed.rollout_memory import tree_mb
from benchmarks.support.machine import this_machine
from simplevla import cli
from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.adapters.load import load_policy
from simplevla.config import (
    DemosConfig,
    Head,
    OptimizerConfig,
    Precision,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.provenance import commit
from simplevla.planning.plan import plan
from simplevla.planning.unfilled import add_trained_adapter, saved
from simplevla.policies.smolvla.policy import SmolVLA
from simplevla.runs import continual, sft, train
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.training.runlog import read_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
TASKS = ("press_button", "lift_block")
SUITE = SuiteConfig(name="benchmarks.support.solved_by_chance:make", tasks=TASKS)
Run = Literal["sft", "train", "continual_sft", "continual_sft_rl", "export", "import"]


@dataclass(frozen=True)
class Measured:
    """What is measured of a policy, and the page's words for it."""

    runs: dict[Run, str]
    precisions: tuple[Precision, ...]
    head: Head
    chunk: int
    batches: int
    """Of `sft`."""
    title: str
    needs: str
    notes: str


TINYVLA = Measured(
    runs={
        "sft": "`sft`, all parameters, 10 batches",
        "train": "`train`, all parameters, one update",
        "continual_sft": "`continual --stages sft`, two tasks with `--data`, LoRA of rank 32",
        "continual_sft_rl": "`continual --stages sft+rl`, the same and one update for each",
    },
    precisions=("float32", "bfloat16"),
    head="diffusion",
    chunk=16,
    batches=10,
    title="`sft`, `train` and `continual`",
    needs="Supervised fine-tuning, RL and continual training",
    notes="Continual training imitates one batch of each task and evaluates one held-out state of each task in each row.",
)
SMOLVLA = Measured(
    runs={
        "sft": "`sft`, expert and projections, one batch",
        "train": "`train`, expert and projections, one update",
        "export": "`export lerobot` of the imitated policy",
        "import": "`import smolvla` of the folder that was exported",
    },
    precisions=("float32",),
    head="flow",
    chunk=50,
    batches=1,
    title="`sft`, `train`, `export lerobot` and `import smolvla`",
    needs="Supervised fine-tuning, RL, export and import",
    notes="The tokenizer of the import has the published vocabulary's size and made-up words.",
)


def measured_of(size: str) -> Measured:
    return SMOLVLA if size.startswith("smolvla") else TINYVLA


def imitation(work: Path, size: str, precision: Precision, batches: int) -> SFTConfig:
    """Imitation of both tasks, whose actions the policy's frozen statistics must span."""
    what = measured_of(size)
    return SFTConfig(
        dataset=str(work / "both"),
        policy=size,
        head=what.head,
        chunk_length=what.chunk,
        batches=batches,
        batch_size=1,
        validation_fraction=0.0,
        gradient_checkpointing=True,
        precision=precision,
    )


def reinforcement(work: Path, precision: Precision) -> TrainConfig:
    """One update of one pair of siblings."""
    return TrainConfig(
        suite=SUITE,
        policy=str(work / f"sft_{precision}" / "policy"),
        updates=1,
        sampling=SamplingConfig(groups=1, group_size=2, max_oversampling=16.0),
        optimizer=OptimizerConfig(lr=1e-5),
        minibatches=1,
        microbatch_decisions=1,
        gradient_checkpointing=True,
        rollout=RolloutConfig(workers=1, slots_per_worker=2),
        eval_every=0,
        precision=precision,
    )


def child(work: Path, size: str, run: Run, precision: Precision) -> None:
    """The run itself."""
    out = work / f"{run}_{precision}"
    if run == "sft":
        sft(imitation(work, size, precision, measured_of(size).batches), out)
        return
    if run == "export":
        policy, worded = load_policy(work / f"sft_{precision}" / "policy"), work / f"worded_{precision}"
        # Its own words' tokenizer is one that LeRobot couldn't load, so its export would be refused.
        assert isinstance(policy, SmolVLA)
        policy.prompts.tokenizer = Tokenizer.from_file(str(write_tokenizer(work / "tokenizer") / "tokenizer.json"))
        policy.save(worded)
        del policy
        cli.main(["export", "lerobot", str(worded), str(out)])
        shutil.rmtree(worded)
        return
    if run == "import":
        named = [f"{camera}=observation.images.{camera}" for camera in ("fixed", "wrist")]
        folder, tokenizer = str(work / f"export_{precision}"), str(write_tokenizer(work / "tokenizer"))
        cli.main(["import", "smolvla", folder, str(out), "--tokenizer", tokenizer, "--cameras", *named])
        return
    config = reinforcement(work, precision)
    if run == "train":
        train(config, out)
        return
    data = tuple(f"{task}={work / task}" for task in TASKS)
    # Each task has its own dataset, and the policy is RL's.
    warmup = replace(imitation(work, size, precision, 1), dataset="", policy=SFTConfig().policy)
    stages: Literal["sft", "sft+rl"] = "sft" if run == "continual_sft" else "sft+rl"
    continual(
        ContinualConfig(train=config, tasks=TASKS, stages=stages, data=data, warmup=warmup, eval_episodes_per_task=1),
        out,
    )


def write_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer of the published vocabulary's size, with `<image>` where it stands there."""
    vocabulary = {f"word{number}": number for number in range(49_280) if number != 49_190}
    tokenizer = Tokenizer(WordLevel({**vocabulary, "<image>": 49_190}, unk_token="word0"))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def measured(work: Path, size: str, run: Run, precision: Precision) -> dict[str, Any]:
    """Peak memory of the run's process tree, shared pages counted once, its minutes, and what its log says."""
    command = [sys.executable, "-m", "benchmarks.speed.policy_runs", size, str(work), run, precision]
    started, peak = time.monotonic(), 0.0
    with (work / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            peak = max(peak, tree_mb(process.pid))
            time.sleep(1.0)
    if process.returncode or not (work / f"{run}_{precision}").exists():
        raise SystemExit(f"{run} in {precision}: {(work / 'output').read_text()[-2000:]}")
    found: dict[str, Any] = {"peak_gb": peak / 1e3, "minutes": (time.monotonic() - started) / 60}
    rows = [
        row for log in sorted((work / f"{run}_{precision}").rglob("metrics.jsonl")) for row in read_rows(log.parent)
    ]
    updates = [row for row in rows if row.get("optimizer_steps")]
    if "rl" in run or run == "train":
        assert len(updates) == (1 if run == "train" else len(TASKS)), f"{run} in {precision} made no update"
        found["logprob_gap"] = max(row["logprob_gap"] for row in updates)
    if "sft" in run:
        found["loss"] = next(row["loss"] for row in reversed(rows) if "loss" in row and "optimizer_steps" not in row)
    if run == "train" or run == "continual_sft_rl":
        policy = saved(work / f"sft_{precision}" / "policy")
        if run == "continual_sft_rl":
            add_trained_adapter(policy, AdapterConfig())
        found["formula_gb"] = plan(reinforcement(work, precision), policy).memory(0).total / 1e9
    return found


def main(size: str) -> None:
    work = ROOT / "runs" / "bench" / f"{size}_runs"
    for name, tasks in {"both": TASKS, **{task: (task,) for task in TASKS}}.items():
        if not (work / name).exists():
            generate(DemosConfig(suite=SuiteConfig(name="tabletop", tasks=tasks), episodes=8, workers=1), work / name)
    done, what = work / "measured.json", measured_of(size)
    found: dict[str, dict[str, Any]] = read_json(done) if done.exists() else {run: {} for run in what.runs}
    for precision in what.precisions:
        for run in what.runs:
            if precision in found[run]:
                continue
            shutil.rmtree(work / f"{run}_{precision}", ignore_errors=True)
            found[run][precision] = {**measured(work, size, run, precision), "commit": commit()}
            print(run, precision, found[run][precision], flush=True)
            write_json(done, found)
            # Checkpoints of several GB each; the next runs start from the policy, or its export, alone.
            if run not in ("sft", "export"):
                shutil.rmtree(work / f"{run}_{precision}")
    result = {
        "size": size,
        "machine": this_machine(),
        "threads": torch.get_num_threads(),
        "chunk": what.chunk,
        "runs": found,
    }
    write_json(RESULTS / f"{size}_runs.json", result)
    write_atomically(RESULTS / f"{size}_runs.md", page(result).encode())


def page(result: dict[str, Any]) -> str:
    runs, size = result["runs"], result["size"]
    what = measured_of(size)
    peaks = {precision: max(runs[run][precision]["peak_gb"] for run in runs) for precision in what.precisions}
    most = [f"{peaks['float32']:.1f} GB in float32"]
    most += [f"{peaks[p]:.1f} GB with `--precision {p}`" for p in what.precisions if p != "float32"]
    columns = [f" peak, {p}, GB |" for p in what.precisions] + [f" minutes, {p} |" for p in what.precisions]
    rows = [
        f"| {title} | "
        + " | ".join(f"{runs[run][p][name]:.1f}" for name in ("peak_gb", "minutes") for p in what.precisions)
        + " |"
        for run, title in what.runs.items()
    ]
    planned = [
        f"| {what.runs[run]} | {p} | {row['peak_gb']:.1f} | {row['formula_gb']:.1f} | {row['logprob_gap']:.1e} |"
        for run in what.runs
        for p in what.precisions
        if "formula_gb" in (row := runs[run][p])
    ]
    commits = ", ".join(sorted({row["commit"][:12] for of_run in runs.values() for row in of_run.values()}))
    return f"""# {size}: whole runs of {what.title}

{what.needs} at real size need at most {" and ".join(most)}, on a CPU.

| run |{"".join(columns)}
|---{"|---" * len(columns)}|
{chr(10).join(rows)}

Where `simplevla plan` has a formula, it stands beside the peak, with the gap of log-probabilities before the first optimizer step (nats):

| run | precision | peak, GB | formula, GB | gap |
|---|---|---|---|---|
{chr(10).join(planned)}

- Command: `python -m benchmarks.speed.policy_runs {size}`. Machine: {result["machine"]}, {result["threads"]} thread(s). Commits {commits}. Data: `{size}_runs.json`. One run of each.
- Random weights: no pretrained ones were at hand. {what.head.capitalize()} head, chunks of {what.chunk}, two cameras of `tabletop` resized by the policy. Random weights solve nothing, so an episode counts as solved if its first action points to positive x.
- Each run is a process of its own. Its peak is that of the process tree (simulators, reading), shared pages counted once, with Python and torch; starting, writing checkpoints and what else the machine did are in the minutes.
- Batches and micro-batches of 1, activations checkpointed; an update is of one pair of siblings. {what.notes}
- The formula counts all that may be in use at once, simulators and 1 GB per process included ([what fits](../memory.md)). A run also holds what the C library keeps of freed memory, and for a moment a second copy of a policy that is loaded.
"""


if __name__ == "__main__":
    if len(sys.argv) == 5:
        child(Path(sys.argv[2]), sys.argv[1], *sys.argv[3:])  # type: ignore[arg-type]
    else:
        main(*(sys.argv[1:] or ["tinyvla_s"]))
