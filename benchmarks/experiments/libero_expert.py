"""Success of the scripted experts of LIBERO, per task with n. Steps without pictures: the visual mode doesn't matter.

python -m benchmarks.experiments.libero_expert --suite libero_object --tasks 0 4 7 --episodes 10
"""

import argparse
import time

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.libero.conventions import PICK_AND_PLACE
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.registry import make_suite


def main() -> None:
    """Parse the arguments, run the episodes, print one line per task and one for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object", choices=sorted(PICK_AND_PLACE))
    parser.add_argument("--tasks", type=int, nargs="*", help="task numbers; all that have an expert if not given")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per task, from initial state 0 on")
    parser.add_argument("--noise", type=float, default=0.0, help="std of the disturbance of an action, 0 to 2")
    parser.add_argument("--noise-probability", type=float, default=0.3, help="how often an action is disturbed")
    arguments = parser.parse_args()

    suite = make_suite(SuiteConfig(name=arguments.suite, visuals="lite", image_size=16))
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    expert = suite.make_expert(environment)
    assert expert is not None
    known = PICK_AND_PLACE[arguments.suite]
    numbers = arguments.tasks or [i for i, task in enumerate(suite.tasks) if not known or task.name in known]
    solved_in_all, steps_in_all, started = 0, 0, time.process_time()
    for number in numbers:
        task, steps, failed = suite.tasks[number], [], []
        for state in range(arguments.episodes):
            noise = np.random.default_rng((number, state))
            environment.reset(task, state)
            expert.reset()
            for step in range(1, task.horizon + 1):
                action = expert.action()
                steps_in_all += 1
                if arguments.noise and noise.random() < arguments.noise_probability:
                    action = np.clip(action + noise.normal(0, arguments.noise, 7), -1, 1).astype(np.float32)
                if environment.simulation.step(action):
                    steps.append(step)
                    break
            else:
                failed.append(state)
        solved_in_all += len(steps)
        mean = f"{np.mean(steps):.0f} env steps" if steps else "-"
        note = f", failed from states {failed}" if failed else ""
        print(f"{number:2d} {task.name}: {len(steps)}/{arguments.episodes}, {mean}{note}", flush=True)
    seconds = time.process_time() - started
    rate = steps_in_all / seconds
    print(f"all: {solved_in_all}/{len(numbers) * arguments.episodes}, {rate:.0f} env steps per CPU second")
    environment.close()


if __name__ == "__main__":
    main()
