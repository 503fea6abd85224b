"""RL on nine tasks of libero_object and success on the tenth, before and after:
`python -m benchmarks.experiments.libero_tenth --tenths 0 4 7`, about 15 minutes a choice on two cores.

Writes docs/results/libero_tenth.json after each run, and .md and .png at the end. Rows that are there are not measured again, nor runs that are
finished in --runs. Those that were made with other settings are refused. --quick is the test's, in folders of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.experiments.training_seeds import interval
from benchmarks.support.before_after import plot_before_after
from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, recipe_digest
from simplevla.config import EvalConfig
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.compare import compare
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import read_result, write_result
from simplevla.evaluation.statistics import mcnemar_exact
from simplevla.recipes import libero
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "libero_tenth"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, and which tasks are left out of RL."""

    runs: Path = Path("runs/libero_tenth")
    seeds: tuple[int, ...] = (0,)
    """Training seeds, each with its own imitator of all ten tasks."""
    tenths: tuple[int, ...] = (0, 4, 7)
    """Tasks by their number in the suite; chosen before anything was measured."""
    updates: int = 16
    out: Path = RESULTS
    quick: bool = False
    """Two tasks, a short imitation, an update of few groups, two states; the figures mean nothing then."""


def tasks(arguments: Arguments) -> list[str]:
    """Names of the tasks that are imitated."""
    names = [task.name for task in make_suite(libero.suite(libero.OBJECT)).tasks]
    return names[4:6] if arguments.quick else names


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for those that a row is found by."""
    chosen = recipe_digest(libero.demos(), libero.sft(), libero.train())
    return {"recipe": chosen, **{key: getattr(arguments, key) for key in ("updates", "quick")}}


def measured(arguments: Arguments, seed: int, tenth: int) -> dict[str, Any]:
    """One choice of the tenth task: both policies on all of its states, and on held-out states of the nine."""
    demos, start = arguments.runs / f"demos_seed{seed}", arguments.runs / f"sft_seed{seed}"
    run = arguments.runs / f"without{tenth}_seed{seed}"
    shown, imitation = replace(libero.demos(), seed=seed), replace(libero.sft(), dataset=str(demos), seed=seed)
    config = replace(libero.train(), policy=str(start / "policy"), updates=arguments.updates, eval_every=0, seed=seed)
    names = tasks(arguments)
    alone, others = (
        replace(config.suite, tasks=tasks) for tasks in ((names[tenth],), (*names[:tenth], *names[tenth + 1 :]))
    )
    config, states = replace(config, suite=others), 0
    if arguments.quick:
        shown = replace(shown, suite=replace(shown.suite, tasks=tuple(names)), episodes=48)
        imitation, states = replace(imitation, batches=250, batch_size=64), 1
        few = replace(config.sampling, groups=2, group_size=4, max_oversampling=8.0)
        config = replace(config, sampling=few, minibatches=1, rollout=replace(config.rollout, workers=2))
    generate(shown, demos, progress=False)
    if not (start / "policy").exists():
        sft(imitation, start, resume=(start / "config.json").exists())
    if not (run / "policy").exists():
        print(train(config, run, resume=(run / "config.json").exists()).message)
    row: dict[str, Any] = {
        "seed": seed,
        "task": names[tenth],
        "updates": read_rows(run)[-1]["update"] if read_rows(run) else 0,
    }
    for key, suite, split in (("tenth", alone, "all"), ("nine", others, "test")):
        results = []
        for stage, policy in (("sft", start / "policy"), ("rl", run / "policy")):
            file = run / f"{key}_{stage}.json"
            if not file.exists():
                evaluation = EvalConfig(split=split, episodes_per_task=states)
                write_result(file, evaluate(policy, suite, config.rollout, evaluation))
            results.append(read_result(file))
        paired = compare(*results).overall
        row[key] = {
            "n": paired.n,
            "sft_success": paired.a.rate,
            "rl_success": paired.b.rate,
            "only_sft": paired.only_a,
            "only_rl": paired.only_b,
            "p": paired.p_value,
        }
    return {**row, "settings": settings_of(arguments), "commit": commit(), "machine": this_machine()}


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, NAME)
    file, settings = arguments.out / f"{NAME}.json", settings_of(arguments)
    rows = read_recorded(file, settings)
    names = tasks(arguments)
    for seed in arguments.seeds:
        for tenth in [number for number in arguments.tenths if number < len(names)]:
            if all((row["seed"], row["task"]) != (seed, names[tenth]) for row in rows):
                claim_runs(arguments.runs, settings)
                rows.append(measured(arguments, seed, tenth))
                write_json(file, rows)
    write_atomically(arguments.out / f"{NAME}.md", page(rows).encode())
    shown = [(row["task"], row["tenth"]) for row in rows] + [("the nine others", row["nine"]) for row in rows]
    plot_before_after(shown, arguments.out / f"{NAME}.png")


def pooled(rows: list[dict[str, Any]], key: str) -> tuple[float, float, float]:
    """(success before, after, p of McNemar's exact test) over all rows."""
    n = sum(row[key]["n"] for row in rows)
    before, after = (sum(row[key][f"{stage}_success"] * row[key]["n"] for row in rows) / n for stage in ("sft", "rl"))
    return before, after, mcnemar_exact(*(sum(row[key][f"only_{stage}"] for row in rows) for stage in ("sft", "rl")))


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    (before, after, p), (nine_before, nine_after, _) = pooled(rows, "tenth"), pooled(rows, "nine")
    lines = [
        "# RL on nine tasks, success on the tenth",
        "",
        f"RL on nine tasks takes the one that it never practises from {before:.0%} to {after:.0%} (p = {p:.2g}), and the nine from "
        f"{nine_before:.0%} to {nine_after:.0%} ({len(rows)} choices).",
        "",
        "| task without RL | seed | its success after SFT (95 % Wilson) | after RL on the other nine | p |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(interval(row["tenth"][f"{stage}_success"], row["tenth"]["n"]) for stage in ("sft", "rl"))
        lines.append(f"| {row['task']} | {row['seed']} | {cells} | {row['tenth']['p']:.2g} |")
    lines += ["", "| task without RL | the nine after SFT | the nine after RL | p |", "|---|---|---|---|"]
    for row in rows:
        cells = " | ".join(interval(row["nine"][f"{stage}_success"], row["nine"]["n"]) for stage in ("sft", "rl"))
        lines.append(f"| {row['task']} | {cells} | {row['nine']['p']:.2g} |")
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    lines += [
        "",
        f"![success before and after RL: each task without RL, and the nine others in the same order]({NAME}.png)",
        "",
        f"- Command: `python -m benchmarks.experiments.{NAME}`. Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. The recipe `libero_object_nano` with {rows[0]['updates']} updates; its imitator saw three demonstrations of all ten tasks.",
        "- The tenth task is evaluated on its 50 initial states. RL met none of them, imitation three. The nine are evaluated on held-out states.",
        "- Success is greedy. p is McNemar's exact test on the same states.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
