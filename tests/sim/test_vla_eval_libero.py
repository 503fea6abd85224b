"""A policy of ours in the harness vla-eval: its own LIBERO benchmark shows the policy what our suite shows."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

import small_tinyvla
from served import served
from simplevla.config import SuiteConfig
from simplevla.policies.base import ActionSample, ObservationBatch, Sampling
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.suites.registry import make_suite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vla_eval") is None, reason="vla-eval isn't installed"),
]
CHUNK, STEPS = 4, 5
HARNESS = f"""
import sys
from vla_eval.api import run
(found,) = run(
    {{"benchmarks": [{{
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "episodes_per_task": 1, "max_tasks": 1, "max_steps": {STEPS}, "params": {{"suite": "libero_object"}},
    }}]}},
    server_url=sys.argv[1], no_save=True, docker=False,
)
print("errors", found["num_errors"], "steps", found["tasks"][0]["episodes"][0]["steps"])
"""


class Watched(TinyVLA):
    """Keeps what it was shown and what it answered."""

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        sample = super().act(batch, sampling, generators)
        self.met.append((batch, sample.actions[0]))
        return sample


def test_the_harness_shows_the_policy_what_our_suite_shows() -> None:
    suite = make_suite(SuiteConfig(name="libero_object", sentences="published"))
    policy = Watched.create(
        "nano",
        cameras=tuple(suite.spec.cameras),
        state_dim=8,
        action_dim=7,
        chunk_length=CHUNK,
        instructions=[task.instruction for task in suite.tasks],
        statistics=small_tinyvla.plain_statistics(8, 7),
    ).eval()
    policy.met = []
    with served(policy, protocol="vla-eval", keys=("fixed=images/agentview",)) as port:
        policy.met.clear()
        done = subprocess.run(
            [sys.executable, "-c", HARNESS, f"ws://127.0.0.1:{port}"], capture_output=True, text=True, timeout=500
        )
    assert f"errors 0 steps {STEPS}" in done.stdout, done.stderr[-3000:]
    assert len(policy.met) == 2
    environment = suite.make_environment()
    observation = environment.reset(suite.tasks[0], 0)
    for batch, actions in policy.met:
        assert batch.instructions == [suite.tasks[0].instruction]
        # The harness reads states and pictures a little before the end of an env step, we at its end.
        np.testing.assert_allclose(batch.state[0].numpy(), observation.state, atol=0.02)
        for camera, image in observation.images.items():
            difference = np.abs(batch.images[camera][0].numpy().astype(int) - image)
            assert difference.mean() < 8, camera
        observation = environment.step_chunk(actions).observation
    environment.close()
