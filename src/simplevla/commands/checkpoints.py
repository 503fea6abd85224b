"""Published checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from simplevla.commands.help import read_arguments


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Converts a TinyVLA checkpoint to a policy folder: simplevla import tinyvla DIR OUT --cameras NAME [NAME ...].

    Nothing in the checkpoint is run, and nothing is written unless all of it fits.
    """

    folder: tyro.conf.Positional[Path]
    """The training's output folder, or a checkpoint-N in it."""
    out: tyro.conf.Positional[Path]
    """New folder for the policy."""
    cameras: tuple[str, ...]
    """The suite's names of the cameras, in the order that the training had them in."""
    base: Path | None = None
    """Folder of the Llava-Pythia model that the training started from, for files and tensors that DIR lacks."""
    frame: tuple[int, int] | None = (180, 320)
    """Height and width that the training's data loading resized camera images to; None if it left them."""


@dataclass(frozen=True, kw_only=True)
class ImportOpenVLAArguments:
    """Converts a published OpenVLA-OFT checkpoint to a policy: simplevla import openvla-oft DIR OUT --cameras fixed.

    Nothing in the checkpoint is run, and nothing is written unless all of it fits.
    """

    folder: tyro.conf.Positional[Path]
    """Published folder: config.json, safetensors, dataset_statistics.json, preprocessor_config.json, tokenizer.json."""
    out: tyro.conf.Positional[Path]
    """New folder for the policy."""
    cameras: tuple[str, ...]
    """The suite's names of the cameras, in the order that the training had them in; LIBERO's agent view is `fixed`."""
    statistics_key: str | None = None
    """Name of one of the checkpoint's statistics, such as libero_spatial; not needed if there is only one."""
    chunk_length: int = 8
    """Actions in a chunk, as trained: 8 for LIBERO, 25 for RoboTwin and ALOHA."""
    gripper: Literal["libero", "none"] = "libero"
    """Gripper. `libero`: the last action is 1 for open in the model, -1 in the simulator. `none`: it stays as it is."""
    lora_adapter: Literal["merge", "merged"] | None = None
    """Use of a LoRA adapter beside the weights: `merge` adds it to them, `merged` says that they contain it already."""


@dataclass(frozen=True, kw_only=True)
class ImportSmolVLAArguments:
    """Converts a SmolVLA that LeRobot saved: simplevla import smolvla DIR OUT --cameras NAME=FEATURE --tokenizer DIR.

    Nothing in the folder is run, and nothing is written unless all of it fits.
    """

    folder: tyro.conf.Positional[Path]
    """LeRobot's folder: config.json, model.safetensors, and the statistics, in today's layout or the older one."""
    out: tyro.conf.Positional[Path]
    """New folder for the policy."""
    cameras: tuple[str, ...]
    """The suite's names of the cameras, each NAME=FEATURE, such as fixed=observation.images.image. A camera of the
    policy that isn't named is missing, as LeRobot lets it be."""
    tokenizer: Path
    """Folder with the backbone's tokenizer.json, and its config.json unless it is SmolVLM2-500M."""
    action_steps: int | None = None
    """Actions of a chunk that are executed before the policy looks again. None: the folder's own `n_action_steps`."""


def import_tinyvla_command(arguments: list[str]) -> int:
    parsed = read_arguments(ImportArguments, "import tinyvla", arguments)

    from simplevla.policies.tinyvla.published import import_tinyvla

    report = import_tinyvla(parsed.folder, parsed.out, cameras=parsed.cameras, base=parsed.base, frame=parsed.frame)
    print(
        f"the policy is in {parsed.out}: {report.tensors} tensors, an adapter merged into {report.merged} of them, "
        f"{report.unread} of the checkpoint that the model never reads left out"
    )
    return 0


def import_openvla_oft_command(arguments: list[str]) -> int:
    parsed = read_arguments(ImportOpenVLAArguments, "import openvla-oft", arguments)

    from simplevla.policies.openvla_oft.published import import_openvla_oft

    report = import_openvla_oft(
        parsed.folder,
        parsed.out,
        cameras=parsed.cameras,
        statistics_key=parsed.statistics_key,
        chunk_length=parsed.chunk_length,
        gripper=parsed.gripper,
        lora_adapter=parsed.lora_adapter,
    )
    print(
        f"the policy is in {parsed.out}: {report.tensors} tensors, {report.parameters / 1e6:.1f} million parameters in "
        f"{report.config.dtype}, statistics of {report.statistics_key}; an adapter merged into {report.merged} of them; {report.unread} tensors that the model never reads left out"
    )
    return 0


def import_smolvla_command(arguments: list[str]) -> int:
    parsed = read_arguments(ImportSmolVLAArguments, "import smolvla", arguments)

    from simplevla.policies.smolvla.published import import_smolvla

    report = import_smolvla(
        parsed.folder,
        parsed.out,
        cameras=parsed.cameras,
        tokenizer=parsed.tokenizer,
        action_steps=parsed.action_steps,
    )
    missing = report.config.missing
    print(
        f"the policy is in {parsed.out}: {report.tensors} tensors, {report.parameters / 1e6:.1f} million parameters"
        + (f"; it does without the cameras {', '.join(missing)}" if missing else "")
    )
    return 0
