"""The state of a long job: a bar in a terminal, elsewhere a plain line every now and then."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import rich.progress

from simplevla.terminal import Console

T = TypeVar("T")

EVERY_S = 15.0
"""Seconds between two plain lines."""


class Progress:
    """Shows how many of `total` are done, how fast, and the time left. Use as a context manager.

    A plain line comes every `EVERY_S` seconds and at the end; where the bar is, into the run's log alone.

    Args:
        done: what an earlier process has done.
        clock: seconds from any start.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._first, self._done = title, total, done, done
        self._console, self._clock = console or Console(), clock
        self._about = ""
        columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn())
        text = rich.progress.TextColumn("{task.fields[text]}")
        self._bars = rich.progress.Progress(
            *columns, text, console=self._console, disable=not self._console.is_terminal
        )

    def __enter__(self) -> "Progress":
        self._started = self._said = self._clock()
        self._bars.start()
        self._bar = self._bars.add_task(self._title, total=self._total, completed=self._done, text="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._say()

    def update(self, done: int, about: str = "") -> None:
        """Shows that `done` are done, and `about`, what else matters; an empty one leaves the last one."""
        self._done, self._about = done, about or self._about
        self._bars.update(self._bar, completed=done, text=self._text())
        if self._clock() - self._said >= EVERY_S:
            self._say()

    def _say(self) -> None:
        self._said = self._clock()
        self._console.say(f"{self._title}: {self._text()}")

    def _text(self) -> str:
        parts = [f"{self._done:,} of {self._total:,}"]
        done, took = self._done - self._first, self._clock() - self._started
        if done > 0 and took > 0:
            rate = done / took
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
            left = self._total - self._done
            parts.append(f"{duration(left / rate)} left" if left else f"took {duration(took)}")
        return ", ".join([*parts, *filter(None, [self._about])])


@contextlib.contextmanager
def tracked(items: Collection[T], title: str, console: Console | None = None) -> Iterator[Iterator[T]]:
    """The items one after another, with progress."""
    with Progress(title, len(items), console=console) as progress:

        def counted() -> Iterator[T]:
            for done, item in enumerate(items, start=1):
                yield item
                progress.update(done)

        yield counted()


def duration(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> duration(83), duration(3 * 3600 + 62)
    ('1:23', '3:01:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
