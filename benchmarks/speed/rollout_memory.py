"""Peak memory of rolling out 256 episodes of `tabletop`, ours and TorchRL's: `python -m benchmarks.speed.rollout_memory`.

Each side runs in a process tree of its own, whose proportional set sizes (shared pages counted once) are added up four
times a second. Writes docs/results/rollout_memory.json and .md.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed.rollout_benchmarks import TABLETOP_ROLLOUT, roll_out
from benchmarks.support.half_trained import TABLETOP, half_trained, requests
from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.recipes import tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import write_atomically, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SIDES = {
    "ours": "ours, two workers with 128 slots each",
    "torchrl": "TorchRL's Collector, ParallelEnv of 16, MultiAction",
    "torchrl_chunked": "the same, whole chunks in our environment",
}


def tree_mb(process: int) -> float:
    """Of a process and its descendants; those that end meanwhile count nothing."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = int(rollup.split("\nPss:")[1].split()[0]) / 1e3
    return own + sum(tree_mb(int(child)) for child in children)


def run(side: str) -> None:
    """Two turns of one side."""
    policy = half_trained(TABLETOP)
    if side == "ours":
        with RolloutEngine(tabletop.SUITE, TABLETOP_ROLLOUT, policy.chunk_length) as engine:
            for seed in (1, 2):
                roll_out(engine, policy, requests(tabletop.SUITE, 32, seed))
        return
    from benchmarks.support.torchrl_rollout import TorchRLRollout

    chunked = side == "torchrl_chunked"
    with TorchRLRollout(tabletop.SUITE, policy, environments=16, episodes=256, chunked=chunked) as torchrl:
        for _ in range(2):
            torchrl.env_steps_per_second()


def main() -> None:
    half_trained(TABLETOP)
    peaks = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.speed.rollout_memory", side]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peaks[side] = 0.0
        while process.poll() is None:
            peaks[side] = max(peaks[side], tree_mb(process.pid))
            time.sleep(0.25)
        assert process.returncode == 0, f"{side} failed"
    result = {
        "peak_mb": peaks,
        "ratio_to_torchrl": peaks["torchrl"] / peaks["ours"],
        "commit": commit(),
        "machine": this_machine(),
    }
    print(json.dumps(result))
    write_json(RESULTS / "rollout_memory.json", result)
    rows = "\n".join(f"| {title} | {peaks[side]:.0f} |" for side, title in SIDES.items())
    text = f"""# Peak memory of rollouts

Our rollouts take {peaks["ours"]:.0f} MB at their peak, and TorchRL's Collector takes {result["ratio_to_torchrl"]:.1f} times as much.

| | peak, MB |
|---|---|
{rows}

- Command: `python -m benchmarks.speed.rollout_memory`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `rollout_memory.json`.
- `tabletop`, half-trained nano policy, twice 256 episodes kept in memory. One run for each row.
- The whole process tree is counted, shared pages once.
"""
    write_atomically(RESULTS / "rollout_memory.md", text.encode())


if __name__ == "__main__":
    run(sys.argv[1]) if len(sys.argv) > 1 else main()
