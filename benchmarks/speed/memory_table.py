"""What fits on 24, 48 and 80 GB: `python -m benchmarks.speed.memory_table`, a few minutes. Writes docs/results/memory.json and .md.

Computed by the formula of `simplevla plan` (docs/memory.md), nothing measured; and the formula against the peaks of tinyvla_s.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from simplevla import recipes
from simplevla.adapters.config import AdapterConfig
from simplevla.config import DenoisingConfig, OptimizerConfig, RolloutConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.evaluation.provenance import commit
from simplevla.planning.footprint import rollout_footprint, update_footprint
from simplevla.planning.memory import Sizes, device_memory, sizes_of
from simplevla.planning.unfilled import add_trained_adapter, published_openvla_oft, supervised
from simplevla.policies.base import Policy
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GIGABYTES = (24, 48, 80)
GPUS = (1, 8)
MICRO_BATCHES = (1, 4, 16, 64, 256)
ROWS = 8
"""Of a policy batch: 16 simulators for each GPU."""
RANK = 32
CHUNK = 16
"""TinyVLA's."""


@dataclass(frozen=True, kw_only=True)
class Way:
    policy: str
    trained: str
    make: Callable[[], Policy]
    suite: Suite
    config: TrainConfig


def ways() -> list[Way]:
    libero = recipes.TRAIN["libero_spatial_one_demo"]()
    suite = make_suite(libero.suite)
    quantised = replace(libero, optimizer=OptimizerConfig(moments="8bit"))

    def adapted(policy: Policy) -> Policy:
        add_trained_adapter(policy, AdapterConfig(rank=RANK, alpha=RANK))
        return policy

    name = "OpenVLA-OFT 7B, bfloat16"
    found = [
        Way(policy=name, trained=trained, make=make, suite=suite, config=config)
        for trained, make, config in (
            ("all", lambda: published_openvla_oft(suite), libero),
            ("all, 8-bit moments", lambda: published_openvla_oft(suite), quantised),
            (f"LoRA, rank {RANK}", lambda: adapted(published_openvla_oft(suite)), libero),
        )
    ]
    return found + [way for size in ("tinyvla_s", "tinyvla_b", "tinyvla_h") for way in tinyvla(size, adapted)]


def tinyvla(size: str, adapted: Callable[[Policy], Policy]) -> list[Way]:
    """Float32, a diffusion head, both cameras of `tabletop` resized to 336 pixels: as in tinyvla_s.md."""
    suite = make_suite(SuiteConfig(name="tabletop"))
    config = TrainConfig(gradient_checkpointing=True, rollout=RolloutConfig(slots_per_worker=1))
    frozen = replace(config, denoising=DenoisingConfig(frozen_backbone=True), gradient_checkpointing=False)

    def make() -> Policy:
        return supervised(SFTConfig(policy=size, head="diffusion", chunk_length=CHUNK), suite)

    return [
        Way(policy=f"{size}, float32", trained=trained, make=maker, suite=suite, config=config)
        for trained, maker, config in (
            ("all", make, config),
            (f"LoRA, rank {RANK}", lambda: adapted(make()), config),
            ("the head (frozen backbone)", make, frozen),
        )
    ]


def measure(way: Way) -> dict:
    """Sizes and traces, and from them every column."""
    policy = way.make()
    policy.prepare_for_rl(way.config)
    sizes, instruction = sizes_of(policy, way.suite.spec), way.suite.tasks[0].instruction
    checkpointing = way.config.gradient_checkpointing
    rollout = rollout_footprint(policy, way.suite.spec, instruction, ROWS)
    updates = {
        rows: update_footprint(policy, way.suite.spec, instruction, rows, checkpointing) for rows in MICRO_BATCHES
    }
    row = {
        "policy": way.policy,
        "trained": way.trained,
        "million_parameters": sizes.parameters / 1e6,
        "million_trained": sum(sizes.trained) / 1e6,
        "micro_batch_gb": {str(rows): size / 1e9 for rows, size in updates.items()},
        "gb": {str(gpus): needs(sizes, way.config, gpus, updates, rollout) for gpus in GPUS},
    }
    print(row, flush=True)
    return row


def needs(sizes: Sizes, config: TrainConfig, gpus: int, updates: dict[int, int], rollout: int) -> dict[str, float]:
    """Micro-batch -> GB of each GPU."""
    return {str(rows): device_memory(sizes, config, gpus, size, rollout).total / 1e9 for rows, size in updates.items()}


def checked() -> list[dict]:
    """The formula against the peaks that tinyvla_s.json measured on a CPU, with micro-batches of 1."""
    measured = read_json(RESULTS / "tinyvla_s.json")["ways"]
    rows = []
    for name, way in zip(("full", "adapter", "frozen_backbone"), ways()[3:6], strict=True):
        policy = way.make()
        policy.prepare_for_rl(way.config)
        spec, instruction = way.suite.spec, way.suite.tasks[0].instruction
        memory = device_memory(
            sizes_of(policy, spec),
            way.config,
            0,
            update_footprint(policy, spec, instruction, 1, way.config.gradient_checkpointing),
            rollout_footprint(policy, spec, instruction, 1),
        )
        # One optimizer step: its moments are made when the activations are gone.
        first = memory.total - min(max(memory.passing.values()), memory.kept["AdamW's moments"])
        rows.append(
            {
                "trained": way.trained,
                "measured_gb": measured[name]["update_gb"],
                "formula_gb": memory.total / 1e9,
                "first_step_gb": first / 1e9,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    result = {"rows": [measure(way) for way in ways()], "checked": checked(), "commit": commit()}
    write_json(RESULTS / "memory.json", result)
    write_atomically(RESULTS / "memory.md", page(result).encode())


def cell(needed: dict[str, float], gigabytes: float) -> str:
    fitting = [int(rows) for rows, size in needed.items() if size <= gigabytes]
    return str(max(fitting)) if fitting else f"no: {needed['1']:.0f} GB"


def page(result: dict) -> str:
    needs = ", ".join(
        f"{row['gb']['1']['1']:.0f} GB ({row['trained']})"
        for row in result["rows"]
        if row["policy"].startswith("OpenVLA")
    )
    tables = []
    for gpus in GPUS:
        heads = " | ".join(f"{gigabytes} GB" + (f" x {gpus}" if gpus > 1 else "") for gigabytes in GIGABYTES)
        tables += [f"| policy | trained | {heads} |", "|---|---|---|---|---|"]
        for row in result["rows"]:
            cells = " | ".join(cell(row["gb"][str(gpus)], gigabytes) for gigabytes in GIGABYTES)
            tables.append(f"| {row['policy']} | {row['trained']} | {cells} |")
        tables.append("")
    sizes = [
        f"| {row['policy']} | {row['trained']} | {row['million_parameters']:,.0f} | {row['million_trained']:,.0f} "
        f"| {row['micro_batch_gb']['1']:.2f} | {row['micro_batch_gb']['16']:.2f} |"
        for row in result["rows"]
    ]
    checked = [
        f"| {row['trained']} | {row['measured_gb']:.1f} | {row['first_step_gb']:.1f} | {100 * (row['first_step_gb'] / row['measured_gb'] - 1):+.0f} % | {row['formula_gb']:.1f} |"
        for row in result["checked"]
    ]
    return f"""# What fits into which GPU: computed

Training OpenVLA-OFT 7B on one GPU takes, as computed and not measured, {needs} with micro-batches of 1.

{chr(10).join(tables)}
A number is the largest micro-batch that fits, of {", ".join(map(str, MICRO_BATCHES))} decisions. "no" is followed by what each GPU would need with micro-batches of 1.
One GPU holds rollouts and updates in one process, with one set of weights. Eight GPUs train by FSDP2, and each holds a replica for rollouts.

Sizes, and GB of activations of one micro-batch of 1 and of 16:

| policy | trained | M parameters | M trained | GB, 1 | GB, 16 |
|---|---|---|---|---|---|
{chr(10).join(sizes)}

- Command: `python -m benchmarks.speed.memory_table`. Commit {result["commit"]}. Data: `memory.json`.
- Computed by the formula of [docs/memory.md](../memory.md); no GPU was at hand.
- Activations are checkpointed. A frozen backbone keeps none.

## Against what was measured on a CPU

TinyVLA-S, with the peaks of the process in [tinyvla_s](tinyvla_s.md): micro-batches of 1 and one optimizer step. AdamW's moments are made in that step, when the activations are gone.
The last column is what the formula says of the steps after it. Why the adapter's differs so much: [docs/memory.md](../memory.md).

| trained | measured, GB | formula, first step, GB | error | formula, later steps, GB |
|---|---|---|---|---|
{chr(10).join(checked)}
"""


if __name__ == "__main__":
    main()
