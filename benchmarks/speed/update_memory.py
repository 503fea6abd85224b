"""Peak memory of one update, in a process of its own: `python -m benchmarks.speed.update_memory ours|padded EPISODES STRETCH`.

The episodes are sampled first and repeated up to EPISODES; STRETCH multiplies the tasks' horizons afterwards, so that more
of them is unused. Prints one line of JSON.
"""

import json
import resource
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.speed.update_benchmarks import CONFIG
from benchmarks.support.half_trained import TABLETOP, half_trained, sampled_groups
from benchmarks.support.reference import padded_update
from simplevla.recipes import tabletop
from simplevla.training.determinism import deterministic
from simplevla.training.learner import Learner
from simplevla.types import Episode


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def copied(episode: Episode, stretch: float) -> Episode:
    """With arrays of its own, and a longer horizon."""
    task = replace(episode.request.task, horizon=int(episode.request.task.horizon * stretch))
    return replace(
        episode,
        request=replace(episode.request, task=task),
        images={name: image.copy() for name, image in episode.images.items()},
        state=episode.state.copy(),
        trace=episode.trace.copy(),
        logprobs=episode.logprobs.copy(),
        actions=episode.actions.copy(),
        executed=np.array(episode.executed),
    )


def main() -> None:
    kind, episodes, stretch = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    policy = half_trained(TABLETOP)
    groups, _ = sampled_groups(policy, tabletop.SUITE, CONFIG.rollout, 16)
    before = resident_mb()
    wanted = [[copied(one, stretch) for one in groups[i % len(groups)]] for i in range(episodes // len(groups[0]))]
    arrays = [
        (*one.images.values(), one.state, one.trace, one.logprobs, one.executed) for group in wanted for one in group
    ]
    stored = sum(array.nbytes for some in arrays for array in some) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that is read below
    if kind == "ours":
        with deterministic():
            Learner(deepcopy(policy), CONFIG).update(wanted, 1)
    else:
        padded_update(deepcopy(policy), wanted, [], CONFIG)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    decisions = sum(len(one.executed) for group in wanted for one in group)
    row = {
        "kind": kind,
        "episodes": episodes,
        "stretch": stretch,
        "decisions": decisions,
        "stored_mb": stored,
        "peak_mb": peak - before,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
