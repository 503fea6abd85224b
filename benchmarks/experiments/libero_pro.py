"""Does what RL gained generalise? A policy before and after RL on LIBERO-PRO's suites, and told another sentence or none:
`python -m benchmarks.experiments.libero_pro --sft DIR --rl DIR --suites libero_object`.

Writes docs/results/libero_pro.json after each row, and .md at the end. Rows that are there are not measured again, nor evaluations that
are finished in --runs; so it goes on in another session. Those that were made with other settings are refused. --quick is the test's, in
folders of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, require_settings
from simplevla import hub
from simplevla.config import EvalConfig
from simplevla.evaluation.compare import Paired, compare
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit, policy_fingerprint
from simplevla.evaluation.result import Rate, read_result, write_result
from simplevla.recipes import libero
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "libero_pro"
KINDS = ("none", "swap", "object", "lan", "task", "other_sentence", "no_sentence")
"""`none` is the base suite; the last two are the base suite with another task's sentence in every task, and with none."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which policies, trained on each of `suites`, and where the evaluations go."""

    sft: str
    """Policy before RL."""
    rl: str
    """The same after RL."""
    suites: tuple[str, ...] = ("libero_object",)
    kinds: tuple[str, ...] = KINDS
    runs: Path = Path("runs/libero_pro")
    episodes_per_task: int = 10
    """Held-out initial states of each of the ten tasks."""
    out: Path = RESULTS
    quick: bool = False
    """One state of one task; the figures mean nothing then."""


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for the policies."""
    return {"episodes_per_task": arguments.episodes_per_task, "quick": arguments.quick}


def fingerprints(arguments: Arguments) -> list[str]:
    """Digests of the weights before and after RL."""
    return [policy_fingerprint(hub.local_folder(policy, "model")) for policy in (arguments.sft, arguments.rl)]


def measured(arguments: Arguments, suite: str, kind: str) -> dict[str, Any]:
    """Both policies on the same held-out states."""
    config = replace(libero.suite(libero.OBJECT), name=f"{suite}_{kind}" if kind in KINDS[1:5] else suite)
    names = tuple(task.name for task in make_suite(config).tasks)
    # Tasks, and whose sentence they are told: no task its own.
    told = [(names[1:], names[0]), (names[:1], names[1])] if kind == "other_sentence" else [(names, "")]
    rollout, episodes = libero.train().rollout, arguments.episodes_per_task
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


def percent(row: dict[str, Any], stage: str) -> str:
    """A rate with its 95 % Wilson interval."""
    rate = Rate(solved=round(row[f"{stage}_success"] * row["n"]), n=row["n"])
    return f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})"


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    perturbed = [row for row in rows if row["perturbation"] in KINDS[1:5]]
    better = sum(row["rl_success"] > row["sft_success"] and row["p"] < 0.05 for row in perturbed)
    before, after = (np.mean([row[f"{stage}_success"] for row in perturbed or rows]) for stage in ("sft", "rl"))
    opening = f"Of {len(perturbed)} suites of LIBERO-PRO RL is significantly better on {better} (McNemar's p < 0.05), and mean success goes"
    lines = [
        "# Does what RL gained generalise?",
        "",
        f"{opening if perturbed else 'Mean success goes'} from {before:.0%} to {after:.0%}.",
        "",
        "| trained on, perturbation | n | after SFT (95 % Wilson) | after RL (95 % Wilson) | p |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['suite']}`, `{row['perturbation']}` | {row['n']} | {percent(row, 'sft')} | {percent(row, 'rl')} | {row['p']:.3g} |"
        for row in rows
    ]
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    lines += [
        "",
        f"- Command: `python -m benchmarks.experiments.{NAME} --sft DIR --rl DIR`. Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. `lite` visuals, greedy, the same held-out initial states, McNemar's exact test.",
        "- `none` is the suite itself. `other_sentence`: every task is told the first task's, and the first the second's; `no_sentence`: a blank.",
        "- LIBERO-PRO is arXiv 2510.03827; [what its suites are](../libero.md).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
