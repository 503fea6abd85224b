"""Does what RL gained generalise? A policy before and after RL on LIBERO-PRO's suites, and told another sentence or none:
`python -m benchmarks.experiments.libero_pro --sft DIR --rl DIR --seed 0 --suites libero_object`.

Writes docs/results/libero_pro.json after each row, and .md and .png at the end. Rows that are there are not measured again, nor evaluations that
are finished in --runs; so it goes on in another session. Those that were made with other settings are refused. --quick is the test's, in
folders of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.experiments.training_seeds import interval
from benchmarks.support.before_after import plot_before_after
from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, require_settings
from simplevla import hub
from simplevla.config import EvalConfig
from simplevla.evaluation.compare import Paired, compare
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit, policy_fingerprint
from simplevla.evaluation.result import read_result, write_result
from simplevla.evaluation.statistics import mcnemar_exact
from simplevla.recipes import libero
from simplevla.storage import write_atomically, write_json
from simplevla.suites.libero.conventions import PERTURBATIONS
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "libero_pro"
KINDS = ("none", *PERTURBATIONS, "other_sentence", "no_sentence")
"""`none` is the base suite; the last two are the base suite with another task's sentence in every task, and with none."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which policies, trained on each of `suites`, and where the evaluations go."""

    sft: str
    """Policy before RL."""
    rl: str
    """The same after RL."""
    seed: int
    """Their training seed, which the page names."""
    suites: tuple[Literal["libero_object", "libero_spatial", "libero_goal"], ...] = ("libero_object",)
    kinds: tuple[str, ...] = KINDS
    runs: Path = Path("runs/libero_pro")
    episodes: int = 100
    """Held-out initial states of all tasks together."""
    out: Path = RESULTS
    quick: bool = False
    """One state of one task; the figures mean nothing then."""


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for the policies."""
    return {"episodes": arguments.episodes, "quick": arguments.quick}


def fingerprints(arguments: Arguments) -> list[str]:
    """Digests of the weights before and after RL."""
    return [policy_fingerprint(hub.local_folder(policy, "model")) for policy in (arguments.sft, arguments.rl)]


def measured(arguments: Arguments, suite: str, kind: str) -> dict[str, Any]:
    """Both policies on the same held-out states."""
    config = libero.suite(suite)
    if kind in PERTURBATIONS:
        config = replace(config, name=f"{suite}_{kind}", test_states=None)
    names = tuple(task.name for task in make_suite(config).tasks)
    # Tasks, and whose sentence they are told: no task its own.
    told = [(names[1:], names[0]), (names[:1], names[1])] if kind == "other_sentence" else [(names, "")]
    rollout, episodes = libero.train().rollout, arguments.episodes // len(names)
    if arguments.quick:
        told, rollout, episodes = [(names[:1], told[-1][1])], replace(rollout, workers=1), 1
    policies, pairs, held_out = fingerprints(arguments), [], set[str]()
    for part, (tasks, sentence) in enumerate(told):
        evaluation = EvalConfig(episodes_per_task=episodes, instruction=kind != "no_sentence", instruction_of=sentence)
        results = []
        for policy, fingerprint in zip((arguments.sft, arguments.rl), policies, strict=True):
            file = arguments.runs / f"{suite}_{kind}_{part}_{fingerprint[:12]}.json"
            if not file.exists():
                write_result(file, evaluate(policy, replace(config, tasks=tasks), rollout, evaluation))
            results.append(read_result(file))
        pairs.append(compare(*results).overall)
        held_out |= {result.held_out for result in results}
    counts = {key: sum(getattr(paired, key) for paired in pairs) for key in ("both", "only_a", "only_b", "neither")}
    paired = Paired(**counts)
    return {
        "suite": suite,
        "seed": arguments.seed,
        "perturbation": kind,
        "n": paired.n,
        "sft_success": paired.a.rate,
        "rl_success": paired.b.rate,
        "p": paired.p_value,
        "only_sft": paired.only_a,
        "only_rl": paired.only_b,
        "held_out": sorted(held_out),
        "policies": policies,
        "settings": {**settings_of(arguments), "policies": policies},
        "commit": commit(),
        "machine": this_machine(),
    }


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, NAME)
    file, settings = arguments.out / f"{NAME}.json", settings_of(arguments)
    rows, policies = read_recorded(file, settings), fingerprints(arguments)
    for suite in arguments.suites:
        require_settings(file, [row for row in rows if row["suite"] == suite], {"policies": policies})
        for kind in arguments.kinds:
            if any((row["suite"], row["perturbation"]) == (suite, kind) for row in rows):
                continue
            claim_runs(arguments.runs, settings)
            rows.append(measured(arguments, suite, kind))
            write_json(file, rows)
    write_atomically(arguments.out / f"{NAME}.md", page(rows).encode())
    shown = [(f"{row['suite']}, {row['perturbation']}", row) for row in rows]
    plot_before_after(shown, arguments.out / f"{NAME}.png")


def pooled(rows: list[dict[str, Any]], kind: str) -> tuple[float, float, float] | None:
    """(success before, after, McNemar's exact p) of a perturbation over the suites; None if there is no row of it."""
    of = [row for row in rows if row["perturbation"] == kind]
    if not of:
        return None
    n = sum(row["n"] for row in of)
    before, after = (sum(row[f"{stage}_success"] * row["n"] for row in of) / n for stage in ("sft", "rl"))
    return before, after, mcnemar_exact(*(sum(row[f"only_{stage}"] for row in of) for stage in ("sft", "rl")))


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What generalises, and whether the policy listens, each in one sentence."""
    found = {kind: rates for kind in KINDS if (rates := pooled(rows, kind))}
    shown = {kind: f"`{kind}` ({found[kind][0]:.0%} to {found[kind][1]:.0%})" for kind in found}
    gained = [
        kind for kind in PERTURBATIONS if kind in found and found[kind][1] > found[kind][0] and found[kind][2] < 0.05
    ]
    others = [kind for kind in PERTURBATIONS if kind in found and kind not in gained]
    said = [
        f"{verdict} {' and '.join(shown[kind] for kind in kinds)}"
        for kinds, verdict in ((gained, "RL's gain carries over to"), (others, "it is not significant on"))
        if kinds
    ]
    carried = f"{said[0][0].upper()}{'; '.join(said)[1:]}." if said else ""
    told = {"none": "its own sentence", "other_sentence": "another task's", "no_sentence": "none"}
    heard = [
        f"{words} in {found[kind][0]:.0%} before RL and {found[kind][1]:.0%} after"
        for kind, words in told.items()
        if kind in found
    ]
    listens = f"Does the policy listen? It solves its task when told {'; '.join(heard)}." if heard else ""
    return list(filter(None, [carried, listens]))


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    lines = [
        "# Does what RL gained generalise?",
        "",
        "\n\n".join(findings(rows)),
        "",
        "| trained on, perturbation | n | after SFT (95 % Wilson) | after RL (95 % Wilson) | p |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['suite']}`, `{row['perturbation']}` | {row['n']} | {interval(row['sft_success'], row['n'])} | {interval(row['rl_success'], row['n'])} | {row['p']:.3g} |"
        for row in rows
    ]
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    policies = " and ".join(dict.fromkeys(f"{row['seed']} of `{row['suite']}`" for row in rows))
    lines += [
        "",
        f"![success before and after RL]({NAME}.png)",
        "",
        f"- The policies are those of [libero_seeds](libero_seeds.md): seed {policies}, one each.",
        *(
            f"- Command: `python -m benchmarks.experiments.{NAME} --sft RUN/sft/policy --rl RUN/rl/policy --seed {seed} --suites {suite}`, "
            f"RUN being that seed's folder in the runs of libero_seeds."
            for suite, seed in dict.fromkeys((row["suite"], row["seed"]) for row in rows)
        ),
        f"- Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. `lite` visuals, greedy, the same held-out initial states. p, and what is significant (below 0.05, all suites together), is McNemar's exact test.",
        "- `none` is the suite itself. `other_sentence`: every task is told the first task's, and the first the second's; `no_sentence`: a blank.",
        "- LIBERO-PRO is arXiv 2510.03827; [what its suites are](../libero.md).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
