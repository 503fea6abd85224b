"""Env steps per CPU second of LIBERO in one process, with two cameras rendered once per chunk.

OMP_NUM_THREADS=1 LP_NUM_THREADS=0 python benchmarks/libero_speed.py --visuals lite --image-size 64
"""

import argparse
import resource
import time

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.registry import make_suite


def main() -> None:
    """Parse the arguments, run random chunks, print one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--visuals", default="lite", choices=("stock", "lite"))
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=12)
    arguments = parser.parse_args()

    suite = make_suite(SuiteConfig(name=arguments.suite, visuals=arguments.visuals, image_size=arguments.image_size))
    clock = time.process_time
    start = clock()
    environment = suite.make_environment()
    environment.reset(suite.tasks[0], 0)
    built = clock()
    environment.reset(suite.tasks[0], 1)
    reset = clock()
    noise = np.random.default_rng(0)
    executed = 0
    for _ in range(arguments.chunks):
        result = environment.step_chunk(noise.uniform(-1, 1, (arguments.chunk, 7)).astype(np.float32))
        executed += result.executed
        assert result.observation, "rendered when it is looked at"
    stepped = clock()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{arguments.suite} {arguments.visuals} {suite.protocol['image_size']} px, chunk {arguments.chunk}: "
        f"{executed / (stepped - reset):.1f} env steps/s, first reset {built - start:.2f} s, "
        f"next {reset - built:.2f} s, {memory:.2f} GB"
    )
    environment.close()


if __name__ == "__main__":
    main()
