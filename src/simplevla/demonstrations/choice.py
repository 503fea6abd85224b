"""The part of a dataset that `ReadingConfig` chooses: which episodes, and what the policy is told."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from simplevla.errors import UserError, brief
from simplevla.reading import ReadingConfig, new_instructions


def chosen_episodes(folder: Path, text: str, count: int) -> list[int]:
    """The episodes of `count` that `text` names, such as `0:100,130`, in order and each once; all if it is empty.

    Raises:
        UserError: an episode that isn't there, or a range without any.
    """
    chosen: set[int] = set()
    for part in text.split(",") if text else [":"]:
        first, is_range, last = part.partition(":")
        start = int(first or 0)
        stop = int(last or count) if is_range else start + 1
        if not start < stop <= count:
            problem = "is empty" if is_range and stop <= start else "isn't all there"
            raise UserError(
                f"episodes {part!r} of {folder} {problem}: it has the episodes 0 to {count - 1}; expected such as 0:{count}, the "
                "end exclusive"
            )
        chosen.update(range(start, stop))
    return sorted(chosen)


def told(folder: Path, instructions: Sequence[str], reading: ReadingConfig) -> list[str]:
    """The instructions in the words that the policy is told, in the same order.

    Raises:
        UserError: a sentence is to be replaced that isn't there; names the nearest.
    """
    new = new_instructions(reading.instructions)
    for sentence in new:
        if sentence not in instructions:
            raise UserError(f"instructions replaces {brief(sentence)}; {folder} has {known(sentence, instructions)}")
    return [new.get(sentence, sentence) for sentence in instructions]


def known(name: str, names: Sequence[str]) -> str:
    """End of an error message about an unknown name: the nearest known ones first, five at most."""
    near = get_close_matches(name, names, n=5, cutoff=0.3)
    shown = [*near, *(other for other in names if other not in near)][:5]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(map(brief, shown))}{more}"
