"""The adapters that a continual run exported, read by peft: `python -m benchmarks.experiments.peft_exports RUN`.

For each exported LoRA adapter the base policy is loaded twice. One gets the adapter by our bank, the other by
`PeftModel.from_pretrained`; both act greedily on the same first observations of every task.
Writes docs/results/continual_exports.json and .md.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from peft import PeftModel

from benchmarks.support.machine import this_machine
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import ContinualConfig
from simplevla.adapters.load import load_policy
from simplevla.adapters.structures import first_observations
from simplevla.checked import from_dict
from simplevla.evaluation.provenance import commit
from simplevla.policies.base import Policy, Sampling
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "continual_exports"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: tyro.conf.Positional[Path]
    """A finished run of `simplevla continual`."""


def main(arguments: Arguments) -> None:
    config = from_dict(ContinualConfig, read_json(arguments.run / "config.json"))
    result = read_json(arguments.run / "continual.json")
    suite = make_suite(config.train.suite)
    base = Path(config.train.policy)
    observations = first_observations(suite)

    def actions(policy: Policy) -> np.ndarray:
        generators = [np.random.default_rng(row) for row in range(len(observations.instructions))]
        return policy.act(observations, Sampling(greedy=True), generators).actions

    before = actions(load_policy(base))
    adapters = []
    for folder in sorted(arguments.run.glob("*/adapter")):
        bank = AdapterBank(load_policy(base))
        name = bank.load(folder)
        bank.activate(name, training=False)
        ours = actions(bank.policy)
        read = load_policy(base)
        PeftModel.from_pretrained(read, str(folder))
        theirs = actions(read)
        k = result["order"].index(name)
        task = result["tasks"].index(name)
        adapters.append(
            {
                "adapter": name,
                "success_before": result["matrix"][0][task],
                "success_after": result["matrix"][k + 1][task],
                "n": result["n"][k + 1][task],
                "chunks": len(ours),
                "largest_difference": float(np.abs(ours - theirs).max()),
                "largest_change_by_adapter": float(np.abs(ours - before).max()),
            }
        )
    record = {
        "command": "python -m benchmarks.experiments.peft_exports RUN",
        "structure": config.structure,
        "commit": commit(),
        "run_commit": result["commit"],
        "seed": config.train.seed,
        "machine": this_machine(),
        "peft": version("peft"),
        "adapters": adapters,
    }
    write_json(RESULTS / f"{NAME}.json", record)
    write_atomically(RESULTS / f"{NAME}.md", page(record).encode())


def page(record: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {a['adapter']} | {a['success_before']:.0%} | {a['success_after']:.0%} | {a['largest_change_by_adapter']:.3f} "
        f"| {a['largest_difference']:g} |"
        for a in record["adapters"]
    )
    largest = max(a["largest_difference"] for a in record["adapters"])
    return f"""# A continual run's adapters in peft

Each of the {len(record["adapters"])} adapters that a continual run exported acts in peft {record["peft"]} as in our bank: actions differ by {largest:g} at most.

| adapter | success before | success after its task | largest change of an action by the adapter | bank and peft differ by |
|---|---|---|---|---|
{rows}

- Command: `{record["command"]}`; RUN is a run of `simplevla continual tabletop_continual --structure {record["structure"]}`, training seed {record["seed"]}, of commit {record["run_commit"][:12]}.
- Read at commit {record["commit"][:12]}, on {record["machine"]}.
- Success is greedy, on {record["adapters"][0]["n"]} held-out initial states of the adapter's task. One training seed.
- Actions are compared in {record["adapters"][0]["chunks"]} chunks: greedy, from the first observations of every task. Action values lie in [-1, 1].
"""


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
