"""Loads a policy and acts on one observation: python examples/act.py runs/quick/rl/policy."""

import signal
import sys

import numpy as np

import simplevla


def main(folder: str) -> np.ndarray:
    policy = simplevla.load_policy(folder)
    suite = simplevla.make_suite(simplevla.SuiteConfig(name="tabletop"))
    task = suite.tasks[0]
    environment = suite.make_environment()
    observation = environment.reset(task, suite.initial_states(task, "test")[0])
    # On a robot: simplevla.Observation(images={"fixed": pixels, "wrist": pixels}, state=state)
    chunk = policy.act_on(observation, task.instruction)
    environment.close()
    print(f"{task.instruction!r}: {len(chunk)} actions of {chunk.shape[1]} numbers\n{chunk}")
    return chunk


if __name__ == "__main__":
    # Nobody reading on, as with `| head`, ends the program without a complaint.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/example/rl/policy")
