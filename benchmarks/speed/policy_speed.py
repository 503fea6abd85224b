"""What the nano policy's forward pass gains from each of its shortcuts: `python -m benchmarks.speed.policy_speed`, about two minutes.

One thread, batches of every size from 65 to 128 in turn, as rollouts have them, after one unmeasured round. Writes
docs/results/policy_speed.json and .md.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from benchmarks.support.cost_model import observations
from benchmarks.support.half_trained import TABLETOP, half_trained
from benchmarks.support.machine import this_machine
from simplevla.allocation import keep_freed_memory
from simplevla.evaluation.provenance import commit
from simplevla.policies.base import Sampling
from simplevla.policies.linear import Linear, linear
from simplevla.policies.tinyvla import policy as policy_module
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.recipes import tabletop
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SIZES = range(65, 129)
REPETITIONS = 5
USUAL = 1024
"""Compiled products that oneDNN keeps unless told otherwise."""


def as_it_is(policy: TinyVLA) -> None:
    pass


def by_mkl(policy: TinyVLA) -> None:
    for layer in policy.modules():
        if type(layer) is Linear:
            layer.__class__ = nn.Linear


def by_transformers(policy: TinyVLA) -> None:
    for layer in policy.language.layers:
        layer.__class__ = GPTNeoXLayer
    own = policy.head.forward
    policy.head.forward = lambda outputs: own(outputs[:, -policy.units :])  # type: ignore[method-assign]


VARIANTS: dict[str, Callable[[TinyVLA], None]] = {
    "as it is": as_it_is,
    "float32 products by MKL instead of oneDNN": by_mkl,
    "transformers' own layers, all of the last one's outputs": by_transformers,
}
EVERY_SIZE = (
    f"batches not filled up to a multiple of {policy_module.ROWS}, oneDNN keeping its usual {USUAL} compiled products"
)


@dataclass(frozen=True)
class Arguments:
    """Without arguments: everything."""

    every_size: bool = False
    """Print the time with batches of every size, for the parent process."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    if arguments.every_size:
        policy_module.ROWS = 1
        print(*measure({"as it is": as_it_is})["as it is"])
        return
    times = measure(VARIANTS)
    times[EVERY_SIZE] = in_a_process("--every-size", ONEDNN_PRIMITIVE_CACHE_CAPACITY=str(USUAL))
    base = median(times["as it is"])
    rows = [
        {"policy": name, "ms_per_row": median(found), "range": [min(found), max(found)], "times": median(found) / base}
        for name, found in times.items()
    ]
    result = {"machine": this_machine(), "commit": commit(), "product_gflops": product_rates(), "rows": rows}
    write_json(RESULTS / "policy_speed.json", result)
    write_atomically(RESULTS / "policy_speed.md", page(result).encode())
    print(page(result))


def measure(variants: dict[str, Callable[[TinyVLA], None]]) -> dict[str, list[float]]:
    """CPU milliseconds per row of `act`, one number per repetition; the variants take turns."""
    suite, sampling = make_suite(tabletop.SUITE), Sampling()
    policies = {name: half_trained(TABLETOP) for name in variants}
    for name, change in variants.items():
        change(policies[name])
    batches = [observations(policies["as it is"], suite, size) for size in SIZES]
    generators = [np.random.default_rng(row) for row in range(max(SIZES))]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(REPETITIONS + 1):
        for name, policy in policies.items():
            started = time.thread_time()
            for batch in batches:
                policy.act(batch, sampling, generators[: len(batch)])
            if repetition > 0:
                times[name].append(1e3 * (time.thread_time() - started) / sum(SIZES))
    return times


def product_rates() -> dict[str, float]:
    """GFLOP/s of one product by each library."""
    rows, width = 2048, 512
    inputs, layer = torch.randn(rows, width), nn.Linear(width, width)
    rates = {}
    with torch.inference_mode():
        for name, product in {"MKL": F.linear, "oneDNN": linear}.items():
            seconds = []
            for _ in range(100):
                started = time.perf_counter()
                product(inputs, layer.weight, layer.bias)
                seconds.append(time.perf_counter() - started)
            rates[name] = 2 * rows * width * width / median(seconds) / 1e9
    return rates


def in_a_process(argument: str, **variables: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.speed.policy_speed", argument]
    found = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return [float(number) for number in found.stdout.split()]


def page(result: dict) -> str:
    lines = ["| policy | CPU ms per row | lowest to highest | times |", "|---|---|---|---|"]
    for row in result["rows"]:
        low, high = row["range"]
        lines.append(f"| {row['policy']} | {row['ms_per_row']:.3f} | {low:.3f} to {high:.3f} | {row['times']:.2f} |")
    table, times = "\n".join(lines), [row["times"] for row in result["rows"][1:]]
    rates = ", ".join(f"{rate:.0f} GFLOP/s by {name}" for name, rate in result["product_gflops"].items())
    return f"""# What the nano policy's shortcuts save

Without one of its shortcuts the nano policy takes {min(times):.2f} to {max(times):.2f} times its CPU time for each row of a batch.

{table}

One product of 2048 x 512 x 512: {rates}.

- Command: `python -m benchmarks.speed.policy_speed`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `policy_speed.json`.
- One thread, `tabletop`, batches of each size from {SIZES[0]} to {SIZES[-1]}. Medians of {REPETITIONS} repetitions in turns; the last row had a process of its own.
- [Why the shortcuts are there](../performance.md).
"""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
