"""A plan as a table, and its verdict in one line."""

from rich.table import Table

from simplevla.planning.measured import measured
from simplevla.planning.plan import Machine, Plan, without_pixels


def table(found: Plan, machine: Machine) -> Table:
    """Bytes of a plan, one entry a row."""
    sizes, memory, place = found.sizes, found.memory(machine.gpus), "each GPU" if machine.gpus else "host"
    title = f"{sizes.parameters / 1e6:,.1f} M parameters, {sum(sizes.trained) / 1e6:,.1f} M of them trained"
    shown = Table("", title=title)
    shown.add_column("GB", justify="right")
    for name, size in memory.kept.items():
        shown.add_row(f"{place}: {name}", gigabytes(size))
    for name, size in memory.passing.items():
        shown.add_row(f"{place}: {name}, while it lasts", gigabytes(size))
    shown.add_row(f"{place}: at most", gigabytes(memory.total), style="bold", end_section=True)
    for name, size in found.host(machine.gpus).items() if machine.gpus else ():
        shown.add_row(f"host: {name}", gigabytes(size))
    return shown


def gigabytes(size: float) -> str:
    """Two digits after the point below ten."""
    return f"{size / 1e9:.2f}" if size < 10e9 else f"{size / 1e9:.1f}"


def sources(found: Plan, machine: Machine) -> str:
    """Text that says what was counted, measured and assumed."""
    worker_mb, suite = found.worker_memory()
    largest = (
        ""
        if without_pixels(suite) == without_pixels(found.simulators)
        else f", the largest, since none of {found.simulators} was"
    )
    assumed = "; assumed: 1 GB per process on a GPU" if machine.gpus else ""
    return (
        f"Counted: the policy's weights, gradients, moments and batches, and episodes that all last to the horizon. Simulators: "
        f"{found.actor.workers * max(1, machine.gpus)} processes of {worker_mb / 1e3:.2f} GB, measured on {suite}{largest}{assumed}."
    )


def time(found: Plan, machine: Machine) -> str:
    """One line about the seconds of an update."""
    if machine.gpus:
        return "seconds: none, since nobody has measured an update on a GPU"
    known, parts = measured(), found.seconds()
    where = f"{known.machine}, commit {known.commit[:12]}"
    if not parts:
        return f"seconds: none, since only the recipe tabletop_nano's costs were measured ({where})"
    each = " and ".join(f"{seconds:.1f} of {name}" for name, seconds in parts.items())
    return f"seconds: about {sum(parts.values()):.1f} an update, {each}, on a machine like the measured one ({where})"


def verdict(found: Plan, machine: Machine, remedies: list[str]) -> str:
    """One line: whether it fits, and what would."""
    place = "on each GPU" if machine.gpus else "of this host's memory"
    needs = f"{gigabytes(found.memory(machine.gpus).total)} of {machine.memory_gb:g} GB {place}"
    if found.fits(machine):
        return f"fits: {needs}"
    advice = (
        f"what would fit: {'; '.join(remedies)}" if remedies else "no single change that is known here makes it fit"
    )
    return f"doesn't fit: needs {needs}; {advice}"
