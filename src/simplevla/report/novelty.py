"""Change of behaviour by RL, for the report: the measured differences, and films of the most novel episodes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np
from rich.table import Table

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.evaluation.result import Rate
from simplevla.novelty.behaviour import Behaviour, Novelty, Quantity, Solved, shares
from simplevla.novelty.replay import Replay, replayed
from simplevla.progress import Progress
from simplevla.report.videos import encode_video, film_stem
from simplevla.storage import read_as, write_atomically, write_json
from simplevla.suites.base import Suite

FOLDER, FILE = "novelty", "novelty.json"
SHOWN: dict[Quantity, tuple[str, float, int]] = {
    "distance": ("distance to the nearest demonstration", 1, 2),
    "env_steps": ("env steps to success", 1, 1),
    "hand_path_m": ("way of the hand, cm", 100, 0),
}
"""Quantity -> (name, factor to what is shown, decimals)."""
FEW = 10
"""Demonstrations of a task below which the threshold misses most of what is novel."""
FILM_SIDE = 256
"""Smallest side of a demonstration's film in pixels; its pictures are repeated up to that."""


@dataclass(frozen=True, kw_only=True)
class NovelFilm:
    """The most novel solved episode of a task after RL, and the demonstration nearest to it."""

    episode: Solved
    after: Path
    demonstration: Path


def write_novelty(
    folder: Path,
    novelty: Novelty,
    jobs: Sequence[Replay],
    dataset: LeRobotDataset,
    suite: Suite,
    config: SuiteConfig,
    rollout: RolloutConfig,
) -> None:
    """Writes `novelty.json` into `folder`, and a film of the most novel episode of each task and of the demonstration
    nearest to it."""
    starts = [(episode.task, episode.initial_state) for episode in novelty.most_novel()]
    wanted = [replace(job, film=True) for job in jobs if (job.task.name, job.initial_state) in starts]
    with Progress("films of novel episodes", len(wanted)) as progress:
        for done, (number, track) in enumerate(replayed(config, suite, rollout, wanted), start=1):
            data, ending = encode_video(track.pictures, suite.spec.control_hz)
            stem = film_stem(wanted[number].task.name, wanted[number].initial_state)
            write_atomically(folder / f"after_{stem}{ending}", data)
            progress.update(done)
    for episode in novelty.most_novel():
        chosen = replace(dataset.reading, episodes=str(episode.nearest))
        frames = LeRobotDataset(dataset.folder, chosen).load_all()
        pictures = next(iter(frames.images.values()))[np.arange(len(frames.state))]
        data, ending = encode_video([_enlarged(picture) for picture in pictures], dataset.fps)
        write_atomically(folder / f"demonstration_{film_stem(episode.task, episode.initial_state)}{ending}", data)
    write_json(folder / FILE, asdict(novelty))


def read_novelty(run: Path) -> tuple[Novelty | None, list[NovelFilm]]:
    """Reads what `write_novelty` wrote into the folder `novelty` of `run`; None if it wasn't called."""
    folder = run / FOLDER
    if not (folder / FILE).exists():
        return None, []
    novelty = read_as(folder / FILE, Novelty)
    films = []
    for episode in novelty.most_novel():
        stem = film_stem(episode.task, episode.initial_state)
        after, demonstration = (next(folder.glob(f"{side}_{stem}.*"), None) for side in ("after", "demonstration"))
        if after and demonstration:
            films.append(NovelFilm(episode=episode, after=after, demonstration=demonstration))
    return novelty, films


def rows_of(novelty: Novelty) -> list[tuple[str, list[str]]]:
    """Rows (what, [of the demonstrations, before RL, after RL]) of the table."""
    sides = list(novelty.sides.values())

    def mean(side: Behaviour, quantity: Quantity) -> str:
        if not side.solved:
            return "none"
        _, scale, digits = SHOWN[quantity]
        low, high = side.interval(quantity)
        return f"{scale * side.mean(quantity):.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"

    lost = [str(side.ended_otherwise) for side in sides]
    return [
        ("episodes", [str(side.episodes) for side in sides]),
        ("solved", [str(len(side.solved)) for side in sides]),
        *(
            [("solved, but not when replayed, and left out", lost)]
            if any(side.ended_otherwise for side in sides)
            else []
        ),
        ("novel among the solved", [str(side.novel) if side.solved else "none" for side in sides]),
        *((f"{name}, mean", [mean(side, quantity) for side in sides]) for quantity, (name, _, _) in SHOWN.items()),
    ]


def orders_of(novelty: Novelty) -> list[tuple[str, list[str]]]:
    """Rows (order of events, its share on each side); empty where the suite tells no events."""
    found = shares(side.orders for side in novelty.sides.values())
    return [
        (order, [str(Rate(solved=count, n=total)) if total else "none" for count, total in row]) for order, row in found
    ]


def paired_sentence(novelty: Novelty) -> str:
    """The same states before and after RL, in a sentence."""
    both, only_before, only_after, p = novelty.paired
    if not both:
        return "No initial state is solved by both policies."
    changes = []
    for quantity, (name, scale, digits) in SHOWN.items():
        *values, p_sign = novelty.change(quantity)
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in values)
        changes.append(f"{name} by {mean} [{low}, {high}], p = {p_sign:.2g}")
    return (
        f"Of the {both} states that both policies solve, {only_after} are solved in a novel way only after RL and {only_before} "
        f"only before (McNemar's exact p = {p:.2g}). On these, RL changes {'; '.join(changes)} (sign test)."
    )


def caution(novelty: Novelty) -> str:
    """A sentence where too few demonstrations say what is novel, or nothing."""
    task, count = min(Counter(episode.task for episode in novelty.demonstrations.solved).items(), key=itemgetter(1))
    if count >= FEW:
        return ""
    return f"Task {task!r} has {count} demonstrations; below {FEW} little is called novel."


def novelty_table(novelty: Novelty) -> Table:
    """Table for the terminal."""
    orders = orders_of(novelty)
    said = [paired_sentence(novelty), caution(novelty), "" if orders else "The suite tells no events."]
    caption = " ".join(sentence for sentence in said if sentence)
    table = Table(title=f"{novelty.suite}, {novelty.split} initial states", caption=caption)
    for heading in ("", "demonstrations", "before RL", "after RL"):
        table.add_column(heading)
    for what, cells in rows_of(novelty):
        table.add_row(what, *cells)
    table.add_section()
    for order, cells in orders:
        table.add_row(order, *cells)
    return table


def _enlarged(picture: np.ndarray) -> np.ndarray:
    times = max(1, -(-FILM_SIDE // min(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
