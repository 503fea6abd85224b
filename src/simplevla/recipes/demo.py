"""The main job from nothing to a report: demonstrations, SFT, RL, evaluation on held-out initial states."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simplevla import recipes
from simplevla.demonstrations.generate import generate
from simplevla.errors import UserError
from simplevla.evaluation.compare import compare, comparison_table
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import read_result
from simplevla.record import begin_records, recorded
from simplevla.report.evidence import gather_evidence
from simplevla.report.page import write_report
from simplevla.storage import FolderLock, is_leftover, read_json, remove_leftovers, write_json
from simplevla.terminal import Console
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.run_folder import CONFIG
from simplevla.training.runlog import read_rows

console = Console()


def demo(run: Path, seed: int = 0, recipe: str = "tabletop_nano") -> dict[str, object]:
    """Runs the three recipes called `recipe` with one training seed in the folder `run`; returns summary.json.

    An interrupted demo goes on where it stopped; a finished one is only shown.
    """
    if not (run / "summary.json").exists():
        if run.is_dir() and not (run / "stages.json").exists() and not all(map(is_leftover, run.iterdir())):
            raise UserError(f"{run} exists already and holds no demo; give another --run")
        with FolderLock(run), recorded(run):
            remove_leftovers(run)
            _run_stages(run, seed, recipe)
            return _show(run, seed)
    return _show(run, seed)


def _show(run: Path, seed: int) -> dict[str, object]:
    summary = read_json(run / "summary.json")
    if summary["seed"] != seed:
        raise UserError(f"{run} was done with the seed {summary['seed']}, got {seed}; give another --run")
    before, after = (read_result(run / "rl" / "eval" / f"{name}.json") for name in ("before", "after"))
    console.print(comparison_table(compare(before, after, "SFT", "SFT + RL")))
    console.print_json(json.dumps(summary))
    console.print(f"Report: {run / 'rl' / 'report.html'}   (delete {run} to run the demo again)")
    return summary


def _run_stages(run: Path, seed: int, recipe: str) -> None:
    stages = Stages(run / "stages.json")
    begin_records()
    demos, sft_run, rl_run = run / "demos", run / "sft", run / "rl"
    config = replace(recipes.TRAIN[recipe](), policy=str(sft_run / "policy"), seed=seed)

    demos_config = replace(recipes.DEMOS[recipe](), seed=seed)
    stages.run("demos", "generating demonstrations", lambda: generate(demos_config, demos))
    sft_config = replace(recipes.SFT[recipe](), dataset=str(demos), seed=seed)
    stages.run("sft", "supervised fine-tuning", lambda: sft(sft_config, sft_run, resume=(sft_run / CONFIG).exists()))
    stages.run("rl", "reinforcement learning", lambda: train(config, rl_run, resume=(rl_run / CONFIG).exists()))

    stages.run("evaluation", "evaluating on held-out initial states, filming", lambda: gather_evidence(rl_run))
    stages.run("report", "writing the report", lambda: write_report(rl_run))
    before, after = (read_result(rl_run / "eval" / f"{name}.json") for name in ("before", "after"))
    last = read_rows(rl_run)[-1]
    write_json(
        run / "summary.json",
        {
            "suite": config.suite.name,
            "split": after.split,
            "n": after.overall.n,
            "sft_success": before.overall.rate,
            "rl_success": after.overall.rate,
            "rl_wilson_low": after.overall.low,
            "episodes": last.get("episodes_total", 0),
            "updates": last["update"],
            "minutes_demos": stages.minutes["demos"],
            "minutes_sft": stages.minutes["sft"],
            "minutes_rl": stages.minutes["rl"],
            "minutes_total": sum(stages.minutes.values()),
            "seed": seed,
            "commit": commit(),
        },
    )


class Stages:
    """Runs each stage once, keeps in a file how long it took, and skips it when the demo is started again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stages: dict[str, dict[str, float | bool]] = read_json(file) if file.exists() else {}
        write_json(file, self.stages)

    @property
    def minutes(self) -> dict[str, float]:
        """Stage -> minutes, those of interrupted attempts included."""
        return {name: stage["minutes"] for name, stage in self.stages.items()}

    def run(self, name: str, title: str, stage: Callable[[], object]) -> None:
        state = self.stages.setdefault(name, {"minutes": 0.0, "done": False})
        if state["done"]:
            console.print(f"{title}: done before in {state['minutes']:.1f} minutes", style="dim")
            return
        console.rule(title)
        started = time.monotonic()
        try:
            stage()
            state["done"] = True
        finally:
            state["minutes"] += (time.monotonic() - started) / 60
            write_json(self.file, self.stages)
