"""Lists of what there is by name."""

from collections.abc import Iterable

from simplevla.commands.arguments import nearest
from simplevla.errors import UserError


def list_command(arguments: list[str]) -> int:
    kinds = {"suites": _suite_names, "recipes": _recipe_names, "policies": _policy_names}
    if len(arguments) != 1 or arguments[0] not in kinds:
        got = " ".join(arguments) or "nothing"
        near = nearest(arguments[0], kinds) if arguments else ""
        raise UserError(f"list what? Got {got!r}; expected one of: {', '.join(kinds)}.{near}")
    print("\n".join(kinds[arguments[0]]()))
    return 0


def _suite_names() -> list[str]:
    from simplevla.suites.registry import FACTORIES

    return list(FACTORIES)


def _recipe_names() -> list[str]:
    from simplevla import recipes

    kinds: dict[str, Iterable[str]] = {
        "demos": recipes.DEMOS,
        "sft": recipes.SFT,
        "train": recipes.TRAIN,
        "continual": recipes.CONTINUAL,
    }
    return [f"{command:<6} {name}" for command, known in kinds.items() for name in known]


def _policy_names() -> list[str]:
    from simplevla.policies.registry import listed

    return listed()
