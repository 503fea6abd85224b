"""Structures of continual training side by side: `python -m benchmarks.experiments.continual libero_continual --orders 2 --seeds 0 1 2`,
about 15 minutes a run on two cores; two with tabletop_continual.

Every structure, order and seed is one run of `simplevla continual`; interrupted ones go on. Writes docs/results/RECIPE.json after each run,
and .md and .png of the given seeds and orders at the end. Rows that are there are not measured again; rows of other settings or of another
base policy are refused. --quick is the test's.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import machines, this_machine
from simplevla import recipes
from simplevla.adapters.config import ContinualConfig, Structure
from simplevla.adapters.metrics import FORMULAS, SuccessMatrix
from simplevla.demonstrations.generate import generate
from simplevla.errors import UserError
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.statistics import hierarchical_bootstrap
from simplevla.report.continual import draw_matrix, matrix_table
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.training.continual import continual
from simplevla.training.imitation import sft

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RUNS, QUICK = Path("runs/continual"), Path("runs/quick/continual")
METRICS = ("AVG", "NBT", "FWT", "ZS", "AUC")
BASE = {"tabletop_continual": "tabletop_nano", "libero_continual": "libero_object_nano"}
"""Recipe -> the one whose demonstrations and imitation make its base policy."""
FULL_LR = 1.5e-4
"""Full fine-tuning takes the learning rate of the recipe's ordinary RL; adapters a larger one."""
HARDLY = 0.03
"""NBT up to which the page says that a structure hardly forgets."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which recipe, from which base, in how many orders, with which training seeds."""

    recipe: tyro.conf.Positional[str]
    base: str | None = None
    """Folder of the base policy; `{seed}` in it is replaced by the training seed. Without it one is made in --runs."""
    runs: Path | None = None
    """runs/continual if not given; with --quick runs/quick/continual."""
    orders: int = 2
    """The recipe's order, and then its reverse."""
    seeds: tuple[int, ...] = (0, 1, 2)
    structures: tuple[Structure, ...] = get_args(Structure)
    out: Path | None = None
    """docs/results if not given; with --quick runs/quick/continual."""
    quick: bool = False
    """One seed and order, two tasks, a short imitation, an update of few groups; the figures mean nothing then."""


def quickened(arguments: Arguments) -> Arguments:
    """Makes the recipe and its base's short, in this process."""
    name = BASE[arguments.recipe]
    config, demos, imitation = recipes.CONTINUAL[arguments.recipe](), recipes.DEMOS[name](), recipes.SFT[name]()
    tasks = [task.name for task in make_suite(config.train.suite).tasks]
    untrained = next(task for task in tasks if task not in config.tasks)
    suite = replace(config.train.suite, tasks=(*config.tasks[:2], untrained))
    demos = replace(demos, suite=suite, episodes=48)
    imitation = replace(imitation, batches=150, batch_size=64, eval_episodes_per_task=0)
    few = replace(config.train.sampling, groups=2, group_size=4, max_oversampling=4.0)
    train = replace(config.train, suite=suite, updates=1, sampling=few, minibatches=1, eval_every=0)
    train = replace(train, rollout=replace(train.rollout, workers=1))
    config = replace(config, train=train, tasks=config.tasks[:2], eval_episodes_per_task=2)
    recipes.DEMOS[name], recipes.SFT[name] = lambda: demos, lambda: imitation
    recipes.CONTINUAL[arguments.recipe] = lambda: config
    runs, out = arguments.runs or QUICK, arguments.out or QUICK
    return replace(arguments, orders=1, seeds=arguments.seeds[:1], runs=runs, out=out)


def settings(arguments: Arguments, structure: Structure, order: int, seed: int) -> ContinualConfig:
    config = recipes.CONTINUAL[arguments.recipe]()
    optimizer = replace(config.train.optimizer, lr=FULL_LR) if structure == "full" else config.train.optimizer
    train = replace(config.train, policy=str(base_folder(arguments, seed)), seed=seed, optimizer=optimizer)
    tasks = config.tasks if order == 0 else tuple(reversed(config.tasks))
    return replace(config, train=train, structure=structure, tasks=tasks)


def base_folder(arguments: Arguments, seed: int) -> Path:
    made = arguments.runs / f"{arguments.recipe}_base_seed{seed}" / "sft" / "policy"
    return Path(arguments.base.format(seed=seed)) if arguments.base else made


def make_base(arguments: Arguments, seed: int) -> None:
    """Demonstrations and their imitation, each unless it is there."""
    name, run = BASE[arguments.recipe], base_folder(arguments, seed).parent
    demos = run.parent / "demos"
    generate(replace(recipes.DEMOS[name](), seed=seed), demos, progress=False)
    if not (run / "policy").exists():
        config = replace(recipes.SFT[name](), dataset=str(demos), seed=seed)
        sft(config, run, resume=(run / "config.json").exists())


def decisive(config: ContinualConfig) -> dict[str, Any]:
    """The settings that a row depends on, and the base policy's fingerprint where its folder is there."""
    train, base = config.train, Path(config.train.policy)
    return {
        "updates": train.updates,
        "groups": train.sampling.groups,
        "group_size": train.sampling.group_size,
        "temperature": train.sampling.temperature,
        "minibatches": train.minibatches,
        "lr": train.optimizer.lr,
        "rank": config.adapter.rank,
        "alpha": config.adapter.alpha,
        "eval_episodes_per_task": config.eval_episodes_per_task,
        **({"base_sha256": policy_fingerprint(base)} if base.exists() else {}),
    }


def refuse_others(file: Path, rows: list[dict[str, Any]], arguments: Arguments, adding: bool) -> None:
    """Refuses recorded rows that new ones, or the page of these settings, may not stand beside.

    Raises:
        UserError: naming the first one. Rows without settings, as they were once written, are for pages alone.
    """
    for row in rows:
        name = f"{file}: the row of {row['structure']}, order {row['order_number'] + 1}, seed {row['seed']}"
        if "settings" not in row:
            if adding:
                raise UserError(
                    f"{name} doesn't say its settings and base policy; expected it to, since new rows are to stand beside it. "
                    "Move the file away, or give another --out"
                )
            continue
        config = settings(arguments, row["structure"], row["order_number"], row["seed"])
        now = decisive(config) | {"order": list(config.tasks)}
        now |= make_suite(config.train.suite).protocol if adding else {}
        was = row["settings"] | {"order": row["order"]} | row["protocol"]
        if differing := [f"{key} {was.get(key)} (now {now[key]})" for key in now if was.get(key) != now[key]]:
            raise UserError(
                f"{name} was made with {', '.join(differing)}; expected the same in all rows. Remove such rows from the file "
                "to make them again, give the --base that they had, or give another --out"
            )


def mean_matrix(results: list[dict[str, Any]]) -> SuccessMatrix:
    """Of runs with the same order: episodes added up over the seeds."""
    first = results[0]
    n_SRT, solved_SRT = counts(results)
    return SuccessMatrix(
        tasks=tuple(first["tasks"]),
        order=tuple(first["order"]),
        solved=tuple(map(tuple, solved_SRT.sum(axis=0).tolist())),
        n=tuple(map(tuple, n_SRT.sum(axis=0).tolist())),
    )


def counts(results: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Episodes and solved ones, int [seeds, rows, tasks], of runs with the same order."""
    n_SRT = np.array([result["n"] for result in results])
    return n_SRT, np.round(np.array([result["matrix"] for result in results]) * n_SRT).astype(int)


def cell_intervals(results: list[dict[str, Any]]) -> list[list[tuple[float, float]]] | None:
    """Intervals over the seeds of every cell of the matrix of one order; None with one seed."""
    if len(results) == 1:
        return None
    n_SRT, solved_SRT = counts(results)
    return [
        [hierarchical_bootstrap(solved_SRT[:, i, [j]], n_SRT[:, i, [j]])[1:] for j in range(n_SRT.shape[2])]
        for i in range(n_SRT.shape[1])
    ]


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = quickened(arguments)
    arguments = replace(arguments, runs=arguments.runs or RUNS, out=arguments.out or RESULTS)
    file = arguments.out / f"{arguments.recipe}.json"
    recorded = read_json(file) if file.exists() else {"runs": []}
    # Once there was one machine for all rows.
    results = [{"machine": recorded.get("machine"), **row} for row in recorded["runs"]]
    wanted = [
        (seed, order, structure)
        for seed in arguments.seeds
        for order in range(arguments.orders)
        for structure in arguments.structures
    ]
    missing = [key for key in wanted if key not in map(key_of, results)]
    refuse_others(file, results, arguments, adding=bool(missing))
    if not arguments.base:
        for seed in dict.fromkeys(seed for seed, _, _ in missing):
            make_base(arguments, seed)
        # Once more, now that the bases are there.
        refuse_others(file, results, arguments, adding=bool(missing))
    for seed, order, structure in missing:
        config = settings(arguments, structure, order, seed)
        run = arguments.runs / f"{arguments.recipe}_{structure}_order{order}_seed{seed}"
        facts = {"order_number": order, "settings": decisive(config), "machine": this_machine()}
        result = continual(config, run, resume=(run / "config.json").exists()) | facts
        for stage in result["stages"]:
            # It names folders of this machine.
            del stage["message"]
        results.append(result)
        write_json(file, {"runs": results})
    shown = [row for row in results if key_of(row) in wanted]
    plot(arguments, shown)
    write_atomically(arguments.out / f"{arguments.recipe}.md", page(arguments, shown).encode())


def key_of(row: dict[str, Any]) -> tuple[int, int, str]:
    return row["seed"], row["order_number"], row["structure"]


def of(results: list[dict[str, Any]], structure: str, order: int | None = None) -> list[dict[str, Any]]:
    return [r for r in results if r["structure"] == structure and order in (None, r["order_number"])]


def grid(arguments: Arguments) -> list[tuple[int, str]]:
    """All orders, and all structures in each."""
    return [(order, structure) for order in range(arguments.orders) for structure in arguments.structures]


def plot(arguments: Arguments, results: list[dict[str, Any]]) -> None:
    """Two matrices side by side, so that their numbers can be read on the page."""
    shown = [pair for pair in grid(arguments) if of(results, pair[1], pair[0])]
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 3.4 * rows), layout="constrained", squeeze=False)
    for axis, (order, structure) in zip(axes.flat, shown, strict=False):
        draw_matrix(axis, mean_matrix(of(results, structure, order)))
        axis.set_title(f"{structure}, order {order + 1}", fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.savefig(arguments.out / f"{arguments.recipe}.png", dpi=120)
    plt.close(figure)


def points(share: float) -> str:
    # 0 is added so that no minus stands before a zero.
    return f"{round(100 * share, 1) + 0:.1f}"


def over_runs(runs: list[dict[str, Any]], metric: str) -> tuple[float, float, float]:
    """Mean of a metric over a structure's runs, and its 95 % interval: seeds are drawn, and orders within each seed."""
    values_SO = np.array([[run[metric] for run in runs if run["seed"] == seed] for seed in seeds_of(runs)])
    seeds, orders = values_SO.shape
    rng = np.random.default_rng(0)
    drawn = values_SO[rng.integers(seeds, size=(10_000, seeds, 1)), rng.integers(orders, size=(10_000, seeds, orders))]
    low, high = np.quantile(drawn.mean(axis=(1, 2)), [0.025, 0.975])
    return float(values_SO.mean()), float(low), float(high)


def seeds_of(runs: list[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(run["seed"] for run in runs))


def cell(runs: list[dict[str, Any]], metric: str) -> str:
    """Mean and interval of a metric, in points; one seed has no interval."""
    if any(run[metric] is None for run in runs):
        return "–"
    mean, low, high = map(points, over_runs(runs, metric))
    return f"{mean} [{low}, {high}]" if len(seeds_of(runs)) > 1 else mean


def listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def findings(runs: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    """The page's first three sentences, from structure -> its runs."""
    lost, kept = ({name: over_runs(of, metric) for name, of in runs.items()} for metric in ("NBT", "AVG"))
    number = len(next(iter(runs.values())))
    forgetting = listed([f"{points(lost[name][0])} for `{name}`" for name in runs])
    counted = "in one run each" if number == 1 else f"over {number} runs each"

    ends = {name: points(mean) for name, (mean, _, _) in kept.items()}
    best, worst = (choose(kept, key=lambda name: kept[name][0]) for choose in (max, min))
    highest, lowest = (listed([f"`{name}`" for name in runs if ends[name] == ends[end]]) for end in (best, worst))
    several = len(seeds_of(runs[best])) > 1
    unsure = "; their intervals overlap" if several and kept[best][1] <= kept[worst][2] else ""
    verb = "end" if " and " in highest else "ends"
    if ends[best] == ends[worst]:
        ending = f"{highest} {verb} with a mean success of {ends[best]} % on trained tasks"
    else:
        ending = f"{highest} {verb} with the highest mean success on trained tasks, {ends[best]} % (lowest: {lowest}, {ends[worst]} %{unsure})"
    alone = "; `per_task` can't forget by construction" if "per_task" in runs else ""

    if "shared" not in runs:
        ours = "`shared`, the same here, wasn't run"
    elif lost["shared"][0] <= HARDLY:
        ours = f"`shared`, the same here, agrees, at {points(lost['shared'][0])} points, though our policy is small and not pretrained"
    else:
        ours = f"`shared`, the same here, loses {points(lost['shared'][0])} points, likely since our policy is small and not pretrained"
    return (
        f"Forgetting (NBT, points lost on a task since its training) is {forgetting}, {counted}.",
        f"{ending}{alone}.",
        f"Sequential LoRA hardly forgets on large pretrained models (arXiv 2603.11653); {ours}.",
    )


OVER_SEEDS = "Brackets hold 95 % intervals, by a bootstrap of the seeds and of the orders within each."
ONE_SEED = "One training seed gives no interval."
CELLS_OVER_SEEDS = (
    "Means over the seeds; 95 % intervals by a bootstrap of the seeds and of the episodes within each. Where all seeds solve all "
    "or nothing, an interval has no width, and another seed may still differ."
)
CELLS_OF_ONE_SEED = "One training seed: 95 % Wilson intervals over its episodes, which don't know that seeds differ."


def page(arguments: Arguments, results: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    runs_by = {name: of(results, name) for name in arguments.structures}
    first, *further = findings(runs_by)
    rows, costs = [], []
    for structure, runs in runs_by.items():
        cells = [cell(runs, name) for name in METRICS]
        episodes = np.mean([run["episodes"] for run in runs])
        trained = runs[0]["stages"][0]["trained_parameters"]
        size = runs[0]["stages"][0]["adapter_bytes"]
        kilobytes = f"{size / 1000:.0f}" if size else "–"
        rows.append(f"| {structure} | {' | '.join(cells[:4])} |")
        costs.append(f"| {structure} | {cells[4]} | {episodes:.0f} | {trained} | {kilobytes} |")
    formulas = "\n".join(f"- {name}: {FORMULAS[name]}" for name in METRICS)
    several = len(arguments.seeds) > 1
    tables = []
    for order, structure in grid(arguments):
        runs = of(results, structure, order)
        table = matrix_table(mean_matrix(runs).to_dict(structure, runs[0]["seed"]), cell_intervals(runs))
        tables.append(f"### {structure}, order {order + 1}\n\n{table}")
    commits = ", ".join(sorted({run["commit"][:12] for run in results}))
    protocol = ", ".join(f"{key} {value}" for key, value in results[0]["protocol"].items())
    joined = "\n".join(tables)
    seeds = " ".join(map(str, arguments.seeds))
    recorded = all("settings" in run for run in results)
    return f"""# {arguments.recipe}: structures of continual training side by side

{first}

{" ".join(further)}

| structure | {" | ".join(METRICS[:4])} |
|---|---|---|---|---|
{chr(10).join(rows)}

In points: the mean over the runs of a structure, one for each order and seed. {OVER_SEEDS if several else ONE_SEED}

{formulas}

| structure | {METRICS[4]} | episodes of RL | trained parameters | kB per adapter |
|---|---|---|---|---|
{chr(10).join(costs)}

![success matrices: the framed task has just been trained]({arguments.recipe}.png)

- Command: `python -m benchmarks.experiments.continual {arguments.recipe} --orders {arguments.orders} --seeds {seeds}`. Machine: {machines(results)}. Commit {commits}.
- Training seeds: {len(arguments.seeds)}, each with its own base policy; orders: {arguments.orders}. Success is greedy, on held-out initial states.
- Settings and the base policies' fingerprints {"are in the data" if recorded else "aren't recorded"}.
- Protocol: `{protocol}`. Data: `{arguments.recipe}.json`.

## Matrices

{CELLS_OVER_SEEDS if several else CELLS_OF_ONE_SEED}

{joined}"""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
