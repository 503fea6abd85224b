"""One policy in the harness vla-eval and in our own evaluation: `python -m benchmarks.experiments.vla_eval_harness`, about an hour on two cores.

Trains nano on demonstrations of libero_object in `stock` visuals, serves it to the harness's own LIBERO benchmark, and evaluates it by ours
on the same initial states. Writes docs/results/vla_eval_harness.json and .md. What is finished in --runs isn't done again.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.support.machine import this_machine
from simplevla.config import EvalConfig, RolloutConfig
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.compare import Paired
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.recipes import libero
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "vla_eval_harness"
SUITE = replace(libero.suite(libero.OBJECT), visuals="stock", stepping=None, sentences="published")
LARGE = replace(SUITE, image_size=256)
"""As the harness draws."""
READY_S = 120.0
HARNESS = """
import json, sys
from vla_eval.api import run
url, episodes, out, *tasks = sys.argv[1:]
(found,) = run(
    {"benchmarks": [{
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "episodes_per_task": int(episodes), "tasks": tasks, "params": {"suite": "libero_object"},
    }]},
    server_url=url, no_save=True, docker=False,
)
with open(out, "w") as file:
    json.dump([[task["task"], episode["episode_id"], bool(episode["metrics"].get("success")), episode.get("steps"),
                episode.get("failure_reason")] for task in found["tasks"] for episode in task["episodes"]], file)
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How much is measured, and where the runs go."""

    runs: Path = Path("runs/vla_eval")
    episodes: int = 5
    """Of each of the ten tasks, from initial state 0 on."""
    demos_per_task: int = 5
    harnesses: int = 2
    """Processes of the harness, each with its share of the tasks."""


@contextmanager
def served(policy: Path) -> Iterator[str]:
    """Address of a server of the policy, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["serve", str(policy), "--protocol", "vla-eval", "--keys", "fixed=images/agentview", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "simplevla.cli", *command])
    try:
        for _ in range(round(READY_S)):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the server died"
                time.sleep(1)
        else:
            raise SystemExit(f"the server isn't ready after {READY_S:.0f} s")
        yield f"ws://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def in_harness(policy: Path, arguments: Arguments) -> dict[tuple[str, int], bool]:
    """(task, initial state) -> solved, by the harness; without episodes that it says were broken."""
    tasks = {task.instruction: task.name for task in make_suite(SUITE).tasks}
    parts = [arguments.runs / f"harness{part}.json" for part in range(arguments.harnesses)]
    with served(policy) as url:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", HARNESS, url, str(arguments.episodes), part, *list(tasks)[i :: len(parts)]]
            )
            for i, part in enumerate(parts)
            if not part.exists()
        ]
        assert [one.wait() for one in running] == [0] * len(running), "a process of the harness failed"
    rows = [row for part in parts for row in json.loads(part.read_text())]
    return {(tasks[name], state): solved for name, state, solved, _, failure in rows if failure is None}


def main(arguments: Arguments) -> None:
    demos, sft_run, kept = (arguments.runs / name for name in ("demos", "sft", "ours.json"))
    policy = sft_run / "policy"
    if not policy.exists():
        if not demos.exists():
            generate(replace(libero.demos(), suite=SUITE, episodes=10 * arguments.demos_per_task), demos)
        sft(replace(libero.sft(), dataset=str(demos)), sft_run, resume=(sft_run / "config.json").exists())
    if not kept.exists():
        config = EvalConfig(split="all", episodes_per_task=arguments.episodes)
        found = evaluate(policy, LARGE, RolloutConfig(workers=2, slots_per_worker=1), config)
        write_json(kept, {"episodes": [[one.task, one.initial_state, one.success] for one in found.episodes]})
    ours = {(task, state): solved for task, state, solved in read_json(kept)["episodes"]}
    theirs = in_harness(policy, arguments)
    assert ours.keys() >= theirs.keys(), "the harness ran other states than we did"
    pairs = [(ours[key], theirs[key]) for key in theirs]
    paired = Paired(
        both=pairs.count((True, True)),
        only_a=pairs.count((True, False)),
        only_b=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )
    result = {
        "n": paired.n,
        "ours": paired.a.to_dict(),
        "harness": paired.b.to_dict(),
        "both": paired.both,
        "only_ours": paired.only_a,
        "only_harness": paired.only_b,
        "p": paired.p_value,
        "broken_in_harness": len(ours) - len(theirs),
        "episodes_per_task": arguments.episodes,
        "demos_per_task": arguments.demos_per_task,
        "machine": this_machine(),
        "commit": commit(),
    }
    write_json(RESULTS / f"{NAME}.json", result)
    write_atomically(RESULTS / f"{NAME}.md", page(result, paired).encode())
    print(page(result, paired))


def page(result: dict, paired: Paired) -> str:
    """The result as Markdown."""
    rows = [
        f"| {name} | {rate.solved} | {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) |"
        for name, rate in (("simplevla eval", paired.a), ("vla-eval", paired.b))
    ]
    lines = [
        "# A policy in the harness vla-eval",
        "",
        f"The harness finds {paired.b.rate:.1%} success and `simplevla eval` {paired.a.rate:.1%}, on the same {paired.n} states.",
        "",
        f"| evaluation | solved of {paired.n} | success (95 % Wilson) |",
        "|---|---|---|",
        *rows,
        "",
        f"- Both solved {paired.both}, ours alone {paired.only_a}, the harness alone {paired.only_b}, neither {paired.neither}.",
        f"- McNemar's exact test: p = {paired.p_value:.2f}. Left out, since they broke in the harness: {result['broken_in_harness']}.",
        "- The same policy: nano, one training seed, "
        f"SFT on {result['demos_per_task']} demonstrations of each task of libero_object, `stock` visuals.",
        "- The same initial states: 0 to "
        f"{result['episodes_per_task'] - 1} of each task, stock stepping, 256 pixels, 280 env steps, greedy.",
        "- What differs is in [Deploy a policy](../deploy.md#in-the-harness-vla-eval).",
        f"- Command: `python -m benchmarks.experiments.{NAME} --episodes {result['episodes_per_task']}`. Machine: {result['machine']}. Commit {result['commit'][:12]}. Data: `{NAME}.json`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
