"""Settings of a suite: one of several, what it has no choice of, the size of pictures, splits of seeds."""

from collections.abc import Iterable

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.types import Split

SMALLEST_IMAGE = 16


def refuse(config: SuiteConfig, title: str, *keys: str) -> None:
    """Refuses settings that mean nothing to a suite.

    Raises:
        UserError: one of them is given.
    """
    for key in keys:
        if (value := getattr(config, key)) is not None:
            raise UserError(f"suite.{key} is {value!r}; {title} has no choice of {key}, leave it out")


def choose(config: SuiteConfig, title: str, key: str, options: Iterable[str], called: str) -> str:
    """Value of the setting `key`, the first of `options` where none is given.

    Raises:
        UserError: it is none of them.
    """
    options = tuple(options)
    value: str = getattr(config, key) or options[0]
    if value not in options:
        raise UserError(
            f"suite.{key} is {value!r}; {title} has the {called} {', '.join(options[:-1])} and {options[-1]}"
        )
    return value


def image_side(config: SuiteConfig, default: int) -> int:
    """Side of the images, pixels.

    Raises:
        UserError: it is too small to show anything.
    """
    side = default if config.image_size is None else config.image_size
    if side < SMALLEST_IMAGE:
        raise UserError(f"suite.image_size is {side}; expected at least {SMALLEST_IMAGE} pixels")
    return side


def split_seeds(split: Split, train: int, test: int) -> list[int]:
    """Seeds from 0 on in `split`: first those of `train`, then those of `test`.

    Raises:
        UserError: unknown split.
    """
    if split == "train":
        return list(range(train))
    if split == "test":
        return list(range(train, train + test))
    raise UserError(f"split is {split!r}; expected 'train' or 'test'")
