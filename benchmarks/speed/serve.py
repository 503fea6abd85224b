"""Requests a second of `simplevla serve` with eight clients: `python -m benchmarks.speed.serve`, about a minute.

The policy is nano with random weights for the embedded suite. Each client is a thread of one process, sends what it
sees, waits for the answer, and compares it with the policy asked directly. Writes docs/results/serve.json and .md.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import tyro
from websockets.sync.client import connect

from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.policies.normalization import MEASURES, Statistics
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.recipes import tabletop
from simplevla.serving.encoding import pack, unpack
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.types import Observation

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CLIENTS = 8
CHUNK = 4
DIFFERENT = 32
"""Observations that each client sends in turn."""
GOAL = 100
"""Requests a second."""
SAME = 1e-5
"""Largest difference between an action and the policy's own, in the suite's units: other batches, other last bits."""


@dataclass(frozen=True)
class Arguments:
    """Without arguments: 500 requests of each client, after 50 unmeasured ones."""

    quick: bool = False
    """A few requests, printed and not written."""


@dataclass(frozen=True)
class Said:
    """One client's measurements."""

    seconds: list[float]
    """From each request to its answer."""
    wrong: int
    """Answers that aren't the policy's own, and errors."""


def main(arguments: Arguments) -> None:
    warm, requests = (2, 10) if arguments.quick else (50, 500)
    result = measure(warm, requests)
    print(page(result))
    if not arguments.quick:
        write_json(RESULTS / "serve.json", result)
        write_atomically(RESULTS / "serve.md", page(result).encode())


def measure(warm: int, requests: int) -> dict[str, Any]:
    """The row of serve.json: a server of its own process, and so many requests of each client."""
    policy = random_policy()
    questions = [ask(policy, client) for client in range(CLIENTS)]
    with serving(policy) as address:
        together = Barrier(CLIENTS + 1)
        with ThreadPoolExecutor(CLIENTS) as threads:
            clients = [threads.submit(talk, address, mine, warm, requests, together) for mine in questions]
            together.wait()
            started = time.perf_counter()
            said = [client.result() for client in clients]
            elapsed = time.perf_counter() - started
    milliseconds = 1000 * np.array([each for client in said for each in client.seconds])
    return {
        "requests_per_s": CLIENTS * requests / elapsed,
        "clients": CLIENTS,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "wrong_answers": sum(client.wrong for client in said),
        "requests": CLIENTS * requests,
        "machine": this_machine(),
        "commit": commit(),
    }


def random_policy() -> TinyVLA:
    """Nano as the recipe has it, with random weights."""
    suite = make_suite(tabletop.SUITE)
    values = dict(zip(MEASURES, (0.0, 1.0, -1.0, 1.0, -1.0, 1.0), strict=True))
    state_dim, action_dim = len(suite.spec.state_names), len(suite.spec.action_names)
    return TinyVLA.create(
        "nano",
        cameras=tuple(suite.spec.cameras),
        state_dim=state_dim,
        action_dim=action_dim,
        chunk_length=CHUNK,
        instructions=[task.instruction for task in suite.tasks],
        statistics=Statistics(
            state={name: [value] * state_dim for name, value in values.items()},
            action={name: [value] * action_dim for name, value in values.items()},
        ),
    ).eval()


Question = tuple[dict[str, Any], np.ndarray]
"""An observation as it is sent, and the policy's own answer."""


def ask(policy: TinyVLA, client: int) -> list[Question]:
    """Noise of the suite's shapes: neither time nor right depends on what is seen."""
    suite, random = make_suite(tabletop.SUITE), np.random.default_rng(client)
    found = []
    for number in range(DIFFERENT):
        images = {
            camera: random.integers(0, 256, (*suite.spec.cameras[camera], 3), np.uint8) for camera in policy.cameras
        }
        state = random.normal(size=policy.state_dim).astype(np.float32)
        told = suite.tasks[(client + number) % len(suite.tasks)].instruction
        answer = policy.act_on(Observation(images=images, state=state), told)
        found.append(({**images, "state": state, "prompt": told}, answer))
    return found


@contextmanager
def serving(policy: TinyVLA) -> Iterator[str]:
    """The address of `simplevla serve` with this policy."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy")
        command = [sys.executable, "-m", "simplevla.cli", "serve", f"{folder}/policy", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().split()[2]
            finally:
                server.terminate()


def talk(address: str, questions: list[Question], warm: int, requests: int, together: Barrier) -> Said:
    seconds, wrong = [], 0
    with connect(address, compression=None, max_size=None) as connection:
        connection.recv()
        for number in range(-warm, requests):
            if number == 0:
                together.wait()
            message, expected = questions[number % len(questions)]
            started = time.perf_counter()
            connection.send(pack(message))
            answer = connection.recv()
            if number < 0:
                continue
            seconds.append(time.perf_counter() - started)
            # A text is an error.
            right = isinstance(answer, bytes) and np.allclose(unpack(answer)["actions"], expected, rtol=0, atol=SAME)
            wrong += not right
    return Said(seconds, wrong)


def page(result: dict[str, Any]) -> str:
    return f"""# What a policy server answers

`simplevla serve` answers {result["requests_per_s"]:.0f} requests a second of {result["clients"]} clients, {result["wrong_answers"]} of {result["requests"]:,} wrongly.

| requests a second | goal | median | 99th percentile |
|---|---|---|---|
| {result["requests_per_s"]:.0f} | {GOAL} | {result["p50_ms"]:.0f} ms | {result["p99_ms"]:.0f} ms |

- Command: `python -m benchmarks.speed.serve`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `serve.json`.
- Policy nano with random weights, two pictures of 64 x 64. Server and clients share the machine; each client sends its next observation when it has an answer.
- Wrong is an answer that isn't the policy's own when it is asked directly, and every error.
- [How to serve a policy](../deploy.md).
"""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
