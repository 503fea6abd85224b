"""A plan as a table and one line."""

from rich.table import Table

from simplevla.planning.measured import measured
from simplevla.planning.plan import (
    EPISODE_SHARE,
    GPU_MEMORY_RATE,
    NETWORK,
    NVLINK,
    OBJECT_STORE,
    SAMPLED_PER_TRAINED,
    Machine,
    Plan,
)


def table(found: Plan, machine: Machine) -> Table:
    """Memory, then time."""
    where = "each GPU" if machine.gpus else "host"
    shown = Table(
        title=f"{found.sizes.parameters / 1e6:,.1f} M parameters, {sum(found.sizes.trained) / 1e6:,.1f} M of them trained"
    )
    shown.add_column("")
    shown.add_column("GB", justify="right")
    shown.add_column("s per update", justify="right")
    for name, size in found.memory.kept.items():
        shown.add_row(f"{where}: {name}", gigabytes(size), "")
    for name, size in found.memory.passing.items():
        shown.add_row(f"{where}: {name}, while it lasts", gigabytes(size), "")
    shown.add_row(f"{where}: at most", gigabytes(found.memory.total), "", style="bold", end_section=True)
    for name, size in found.host.items():
        shown.add_row(f"host: {name}", gigabytes(size), "")
    counts, actor = found.counts, found.actor
    actors = max(1, machine.gpus)
    sampled = f"rollout of {counts.episodes:,.0f} episodes, {counts.decisions:,.0f} decisions on {actor.slots * actors} simulators, {actor.cores * actors} cores"
    shown.add_row(sampled, "", seconds(max(found.rollout.values())))
    shown.add_row(f"update on {found.trained_decisions:,.0f} decisions", "", seconds(found.update_s))
    if found.weights_s:
        shown.add_row("weights to the rollout actors", "", seconds(found.weights_s))
    shown.add_row("together", "", seconds(found.seconds), style="bold")
    return shown


def gigabytes(size: float) -> str:
    """Two digits after the point below ten."""
    return f"{size / 1e9:.2f}" if size < 10e9 else f"{size / 1e9:.1f}"


def seconds(time: float) -> str:
    """Three digits or so."""
    return f"{time:.2f}" if time < 10 else f"{time:,.0f}"


def verdict(found: Plan, machine: Machine, remedies: list[str]) -> str:
    """One line: whether it fits, what would, and what takes longest."""
    place = "on each GPU" if machine.gpus else "of this host's memory"
    needs = f"{gigabytes(found.memory.total)} of {machine.memory_gb:g} GB {place}"
    time = f"about {seconds(found.seconds)} s per update, most of it {found.bottleneck}"
    if found.fits:
        return f"fits: {needs}; {time}"
    advice = (
        f"what would fit: {'; '.join(remedies)}" if remedies else "no single change that is known here makes it fit"
    )
    return f"doesn't fit: needs {needs}; {advice}"


def sources(machine: Machine) -> str:
    """Text that says what was measured and what is assumed."""
    known = measured()
    text = (
        f"Measured ({known.machine}, commit {known.commit[:12]}): simulators, handling of decisions"
        f"{'' if machine.gpus else ', the nano policy and its update, scaled by the number of multiplications'}; episodes of tabletop. "
        f"Computed: parameters, multiplications, bytes. Assumed: elsewhere episodes of {EPISODE_SHARE:.0%} of the horizon and {SAMPLED_PER_TRAINED:g} "
        "sampled for one that trains"
    )
    if not machine.gpus:
        return text + "."
    return (
        f"{text}; {machine.tflops:g} TFLOP/s per GPU; weights read at {GPU_MEMORY_RATE / 1e12:.2f} TB/s; {NVLINK / 1e9:g} and {NETWORK / 1e9:g} GB/s between "
        f"GPUs of one machine and of several; {OBJECT_STORE / 1e9:g} GB/s through the object store; 1 GB per process. Nothing was measured on a GPU."
    )
