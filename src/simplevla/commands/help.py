"""The help of each command: what it does, two examples, and its options."""

import inspect
from typing import Any

import tyro

EXAMPLES: dict[str, tuple[str, str]] = {
    "demos": (
        "simplevla demos tabletop_nano --out runs/demos",
        "simplevla demos libero_object --episodes 100 --out runs/libero/demos",
    ),
    "sft": (
        "simplevla sft tabletop_nano --dataset runs/demos --run runs/sft",
        "simplevla sft --resume runs/sft",
    ),
    "train": (
        "simplevla train tabletop_nano --policy runs/sft/policy --run runs/rl",
        "simplevla train --resume runs/rl --updates 60",
    ),
    "plan": (
        "simplevla plan tabletop_nano --gpus 0 --memory 16",
        "simplevla plan libero_spatial_lora_24gb --gpus 1 --memory 24",
    ),
    "continual": (
        "simplevla continual tabletop_continual --train.policy runs/sft/policy --run runs/tasks",
        "simplevla continual --resume runs/tasks",
    ),
    "eval": (
        "simplevla eval tabletop_nano --policy runs/rl/policy --out after.json",
        "simplevla eval --policy runs/rl/policy --suite.name tabletop --episodes-per-task 20",
    ),
    "compare": (
        "simplevla compare before.json after.json",
        "simplevla compare before.json after.json --out comparison.json",
    ),
    "report": (
        "simplevla report runs/rl",
        "simplevla report runs/rl --episodes-per-task 10",
    ),
    "novelty": (
        "simplevla novelty runs/rl",
        "simplevla novelty runs/rl --demos runs/demos",
    ),
    "adapters": (
        "simplevla adapters list runs/tasks/1_slide_lid/rl/policy",
        "simplevla adapters export runs/tasks/1_slide_lid/rl/policy slide_lid adapters/slide_lid",
    ),
    "import": (
        "simplevla import tinyvla CHECKPOINT runs/mine --cameras front wrist",
        "simplevla import demonstrations recordings demos/mine --layout act",
    ),
    "import tinyvla": (
        "simplevla import tinyvla CHECKPOINT runs/mine --cameras front wrist",
        "simplevla import tinyvla CHECKPOINT runs/mine --cameras front wrist --base LLAVA_PYTHIA",
    ),
    "import openvla-oft": (
        "simplevla import openvla-oft CHECKPOINT runs/oft --cameras fixed",
        "simplevla import openvla-oft CHECKPOINT runs/oft --cameras fixed --statistics-key libero_spatial",
    ),
    "import smolvla": (
        "simplevla import smolvla LEROBOT runs/smolvla --cameras fixed=observation.images.image --tokenizer SMOLVLM2",
        "simplevla import smolvla LEROBOT runs/smolvla --cameras fixed=observation.images.image wrist=observation.images.image2 "
        "--tokenizer SMOLVLM2",
    ),
    "export": (
        "simplevla export lerobot runs/rl/policy exported",
        "simplevla export lerobot runs/sft/policy exported",
    ),
    "import demonstrations": (
        "simplevla import demonstrations recordings demos/mine --layout act",
        "simplevla import demonstrations lift.hdf5 demos/lift --layout robomimic --instruction 'lift the cube'",
    ),
    "push": (
        "simplevla push runs/rl/policy OWNER/NAME",
        "simplevla push runs/rl/policy OWNER/NAME --private --license apache-2.0",
    ),
    "serve": (
        "simplevla serve runs/rl/policy",
        "simplevla serve runs/rl/policy --port 9000 --keys fixed=observation/image state=observation/state",
    ),
    "check-suite": (
        "simplevla check-suite tabletop",
        "simplevla check-suite package.module:factory",
    ),
    "demo": (
        "simplevla demo",
        "simplevla demo --run runs/demo_1 --seed 1",
    ),
    "bench": (
        "simplevla bench",
        "simplevla bench update_vs_padded",
    ),
    "list": (
        "simplevla list suites",
        "simplevla list recipes",
    ),
}
"""Command, or kind of import -> two command lines."""


def examples(command: str) -> str:
    """The paragraph of examples in a command's help."""
    return "examples:\n" + "".join(f"  {line}\n" for line in EXAMPLES[command])


def read_arguments(cls: Any, command: str, arguments: list[str], default: Any = None, doc: str | None = None) -> Any:
    """The command's arguments as a `cls`; the help begins with what the command does, and examples.

    Args:
        default: a `cls` whose values are the options' defaults.
        doc: what the command does; None: the docstring of `cls`.

    Raises:
        SystemExit: help was asked for, or the arguments aren't understood.
    """
    first, *others = (" ".join(part.split()) for part in inspect.cleandoc(doc or cls.__doc__).split("\n\n"))
    description = "\n\n".join([first, examples(command), *others])
    known = {} if default is None else {"default": default}
    return tyro.cli(cls, prog=f"simplevla {command}", description=description, args=arguments, **known)
