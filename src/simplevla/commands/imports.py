"""Checkpoints and demonstrations from elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from simplevla.commands.arguments import UNPREFIXED, nearest, take_name
from simplevla.commands.checkpoints import (
    import_openvla_oft_command,
    import_smolvla_command,
    import_tinyvla_command,
)
from simplevla.commands.help import examples, read_arguments
from simplevla.demonstrations.hdf5_settings import HDF5Settings
from simplevla.errors import UserError, printable


@dataclass(frozen=True, kw_only=True)
class ImportDemonstrationsArguments:
    """Converts HDF5 demonstrations to a dataset: simplevla import demonstrations SRC OUT --layout act|robomimic|libero.

    Interrupted, the same command goes on. Nothing in the files is run. See docs/your_own_data.md.
    """

    source: tyro.conf.Positional[Path]
    """HDF5 file, or a folder of them: an episode each (`act`), or a task each (`robomimic`, `libero`)."""
    out: tyro.conf.Positional[Path]
    """New folder for the dataset, a LeRobotDataset v3.0."""
    settings: Annotated[HDF5Settings, UNPREFIXED]
    skip_broken: bool = False
    """Leaves out episodes that are broken, and says why. Without it the first one is an error."""


def import_command(arguments: list[str]) -> int:
    name, rest = take_name(arguments)
    if name is None and {"-h", "--help"} & set(arguments):
        rows = "\n".join(f"  {kind:<16} {text}" for kind, (_, text) in IMPORTS.items())
        print(
            f"usage: simplevla import WHAT SRC OUT [ARGUMENTS]\n\n{examples('import')}\n{rows}\n\n"
            "simplevla import WHAT --help lists the arguments."
        )
        return 0
    if name not in IMPORTS:
        *most, last = map(repr, IMPORTS)
        raise UserError(
            f"import what? Got {name!r}; expected {', '.join(most)} or {last}.{nearest(name or '', IMPORTS)}"
        )
    return IMPORTS[name][0](rest)


def _import_demonstrations(arguments: list[str]) -> int:
    parsed = read_arguments(ImportDemonstrationsArguments, "import demonstrations", arguments)

    from simplevla.demonstrations.hdf5_import import import_hdf5

    report = import_hdf5(parsed.source, parsed.out, parsed.settings, parsed.skip_broken)
    if report is not None:
        print(f"the dataset is in {parsed.out}\n{printable(str(report))}")
    return 0


IMPORTS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "tinyvla": (import_tinyvla_command, "a TinyVLA checkpoint, as a policy folder"),
    "openvla-oft": (import_openvla_oft_command, "a published OpenVLA-OFT checkpoint, as a policy folder"),
    "smolvla": (import_smolvla_command, "a SmolVLA that LeRobot saved, as a policy folder"),
    "demonstrations": (_import_demonstrations, "HDF5 files of ACT, ALOHA, TinyVLA, robomimic or LIBERO, as a dataset"),
}
