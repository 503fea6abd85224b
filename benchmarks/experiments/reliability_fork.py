"""Runs commands of simplevla, each in a process forked from this one, which has imported all: so a kill costs seconds.

Orders come on stdin, a JSON object each; for each the process' id, then its exit status, go to stdout, a line each. Keys:
`arguments`; `stdout` and `stderr`, files; `env`, variables; `under`, a folder whose file operations are counted (opening for
writing, making, renaming, truncating, removing); `kill_at`, the operation before which the process kills itself; `count`, a file
for how many there were, and how many before the first checkpoint; `hang_s`, silence after which a worker of `demos` hangs;
`demo`, a policy from which the recipes of `demo` start, made small.
"""

import gc
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers.models.auto.modeling_auto  # noqa: F401

import simplevla.adapters.bank
import simplevla.recipes.demo
import simplevla.report.continual
import simplevla.training.continual  # noqa: F401
from simplevla import cli, recipes
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig
from simplevla.demonstrations import generate

PLACES = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.truncate": 0, "os.remove": 0, "os.rmdir": 0}
"""Audit events of operations on files -> which argument names the file."""
SUITE = SuiteConfig(name="tabletop", tasks=("press_button",))


class Operations:
    """Counts this process' operations on files under a folder, and kills it before one of them."""

    def __init__(self, under: str, kill_at: int) -> None:
        self._under, self._kill_at, self._pid = under, kill_at, os.getpid()
        self.count = self.before_checkpoint = 0
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in PLACES or os.getpid() != self._pid:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = arguments[PLACES[event]]
        # A tree is removed by names within open folders, and nothing else is.
        inside = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if not inside and not (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._under)):
            return
        self.count += 1
        if self.count == self._kill_at:
            os.kill(self._pid, signal.SIGKILL)
        if event == "os.rename" and Path(path).parent.name == "checkpoints" and not self.before_checkpoint:
            self.before_checkpoint = self.count


def run(order: dict[str, Any]) -> int:
    """One command, in the process that was forked for it; returns its exit code."""
    os.setsid()
    os.environ.update(order.get("env", {}))
    for descriptor, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
    if "hang_s" in order:
        generate.SETTINGS = RolloutConfig(chunk_timeout_s=order["hang_s"])
    if "demo" in order:
        shrink_recipes(order["demo"])
    sys.argv = ["simplevla", *order["arguments"]]
    operations = Operations(order["under"], order.get("kill_at", 0)) if "under" in order else None
    code = cli.main(order["arguments"])
    if operations and "count" in order:
        count = {"all": operations.count, "before_checkpoint": operations.before_checkpoint}
        Path(order["count"]).write_text(json.dumps(count))
    return code


def shrink_recipes(policy: str) -> None:
    """Let `demo` take seconds: few episodes and batches, from a policy that knows the task."""
    name = "tabletop_nano"
    demos, sft, train = recipes.DEMOS[name](), recipes.SFT[name](), recipes.TRAIN[name]()
    recipes.DEMOS[name] = lambda: replace(demos, suite=SUITE, episodes=6, workers=1)
    recipes.SFT[name] = lambda: replace(
        sft,
        suite=SUITE,
        policy=policy,
        batches=4,
        batch_size=8,
        eval_episodes_per_task=0,
        optimizer=OptimizerConfig(lr=1e-5, warmup_steps=1),
    )
    recipes.TRAIN[name] = lambda: replace(
        train,
        suite=SUITE,
        updates=2,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4, max_oversampling=8),
        rollout=RolloutConfig(workers=1, slots_per_worker=8),
        eval_every=2,
        eval_episodes_per_task=2,
    )


def main() -> int:
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            return run(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
