"""Lists of what there is by name."""

from collections.abc import Callable, Mapping
from typing import Any

from simplevla.commands.arguments import nearest
from simplevla.commands.help import examples
from simplevla.errors import UserError


def list_command(arguments: list[str]) -> int:
    """Prints the names of one kind, a line each."""
    if {"-h", "--help"} & set(arguments):
        print(f"usage: simplevla list suites|recipes|policies\n\n{examples('list')}", end="")
        return 0
    kinds = {"suites": _suite_names, "recipes": _recipe_names, "policies": _policy_names}
    if len(arguments) != 1 or arguments[0] not in kinds:
        got = " ".join(arguments) or "nothing"
        near = nearest(arguments[0], kinds) if arguments else ""
        raise UserError(f"list what? Got {got!r}; expected one of: {', '.join(kinds)}.{near}")
    print("\n".join(kinds[arguments[0]]()))
    return 0


def _suite_names() -> list[str]:
    from simplevla.suites.registry import FACTORIES

    return [
        f"{name:<22} " + (f"needs pip install 'simplevla[{extra}]'" if extra else "embedded")
        for name, (_, extra) in FACTORIES.items()
    ]


def _recipe_names() -> list[str]:
    from simplevla import recipes

    kinds: dict[str, Mapping[str, Callable[[], Any]]] = {
        "demos": recipes.DEMOS,
        "sft": recipes.SFT,
        "train": recipes.TRAIN,
        "continual": recipes.CONTINUAL,
    }
    return [
        f"{command:<9} {name:<26} {(recipe.__doc__ or '').splitlines()[0]}"
        for command, known in kinds.items()
        for name, recipe in known.items()
    ]


def _policy_names() -> list[str]:
    from simplevla.policies.registry import listed

    return listed()
