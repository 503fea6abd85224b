"""Curves of a run in an experiment tracker, Weights & Biases or Trackio, each through its own library."""

import re
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from simplevla.config import TrackerName
from simplevla.errors import UserError, one_line
from simplevla.storage import read_json, write_json

PROJECT = "simplevla"
"""Project of all runs; WANDB_PROJECT names another for Weights & Biases."""
FILE = "tracker.json"
"""The file in a run folder that says what the run is called in each tracker."""


class Page(Protocol):
    """The run in a tracker."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self, failed: bool) -> None: ...


class Tracker:
    """The curves of a run in the tracker `name`; None tracks nothing. Use as a context manager.

    A resumed run goes on where it was. Once it has begun, what goes wrong in the tracker is one warning and never ends
    the training.

    Args:
        run: the run's folder, which exists.
        config: settings, as JSON has them.
        axis: name of the x-axis.

    Raises:
        UserError: the library isn't installed, or refuses to begin.
    """

    def __init__(self, name: TrackerName | None, run: Path, config: dict[str, Any], axis: str) -> None:
        self.name = name
        self._page: Page | None = None
        if name is None:
            return
        called = read_json(run / FILE) if (run / FILE).exists() else {}
        words = re.sub(r"[^\w.-]+", "-", "-".join(run.parts[-3:])).strip("-")[-80:]
        called.setdefault(name, f"{words}-{secrets.token_hex(4)}")
        try:
            self._page = PAGES[name](called[name], run, config, axis)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UserError(
                f"tracker is {name!r}, which isn't installed: pip install 'simplevla[{name}]', or leave --tracker out"
            ) from None
        except Exception as error:  # the libraries raise almost anything
            raise UserError(
                f"the tracker {name!r} doesn't begin: {one_line(str(error))}. Log in there, set it offline "
                "(docs/reading_a_run.md), or leave --tracker out"
            ) from error
        write_json(run / FILE, called)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._try(lambda page: page.finish(kind is not None))

    def log(self, values: dict[str, float], step: int) -> None:
        """Sends the `values` of the curves at `step` of the x-axis."""
        self._try(lambda page: page.log(values, step))

    def _try(self, do: Callable[[Page], None]) -> None:
        if self._page is None:
            return
        try:
            do(self._page)
        except Exception as error:  # as above
            self._page = None
            warnings.warn(
                f"the tracker {self.name!r} failed ({one_line(str(error))}); the run goes on without it", stacklevel=4
            )


class WandbPage:
    """A run of Weights & Biases, whose files are in the run folder; WANDB_MODE=offline keeps them there."""

    def __init__(self, called: str, run: Path, config: dict[str, Any], axis: str) -> None:
        import wandb

        # Its copy of the terminal would hold every picture of a progress bar.
        settings = wandb.Settings(console="off")
        project = None if settings.project else PROJECT
        self._run = wandb.init(
            project=project, id=called, name=called, resume="allow", dir=str(run), config=config, settings=settings
        )
        self._axis = axis
        # A resumed run does the updates after its checkpoint again, and wandb's own steps never go back.
        self._run.define_metric("*", step_metric=axis)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({self._axis: step, **values})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TrackioPage:
    """A run of Trackio, by default in its database on this machine."""

    def __init__(self, called: str, run: Path, config: dict[str, Any], axis: str) -> None:
        import trackio

        self._library = trackio
        self._run = trackio.init(project=PROJECT, name=called, config=config, resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step)

    def finish(self, failed: bool) -> None:
        # A run has no status there.
        levels = self._library.AlertLevel
        self._run.alert(
            "the run failed" if failed else "the run is finished", level=levels.ERROR if failed else levels.INFO
        )
        self._library.finish()


PAGES: dict[TrackerName, Callable[[str, Path, dict[str, Any], str], Page]] = {
    "wandb": WandbPage,
    "trackio": TrackioPage,
}
