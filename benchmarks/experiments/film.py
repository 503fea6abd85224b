"""The README's film: `python -m benchmarks.experiments.film runs/demo docs/images/before_and_after.webp`.

Each task of the embedded suite is shown twice: by the policy after imitation, and after RL. The report has
filmed them; of its films those are taken that it chose without knowing the outcome (`report.choice.NEUTRAL_RULE`).
"""

import math
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simplevla.evaluation.result import read_result
from simplevla.report.choice import choose_states
from simplevla.report.videos import Clip, read_clips

SIDE, MARGIN, CAPTION = 132, 4, 18
"""Pixels: a film's side, the frame around it, a line of text."""
COLUMNS = 3
HOLD_S = 2.0
"""The last picture stays this long."""
RUNNING, SOLVED, FAILED = (225, 225, 225), (40, 160, 70), (205, 60, 50)
ROWS = {"before": "after imitation", "after": "after RL"}


def film(run: Path, out: Path) -> None:
    """Writes the animated WebP file `out` of the finished demo in the folder `run`."""
    evaluations = [read_result(run / "rl" / "eval" / f"{name}.json") for name in ROWS]
    chosen = choose_states(*evaluations).neutral
    folder = run / "rl" / "videos"
    clips = {
        (row, clip.task): clip
        for row in ROWS
        for clip in read_clips(folder, row)
        if (clip.task, clip.initial_state) in chosen
    }
    pictures = {key: read_video(folder / clip.file, clip.env_steps + 1) for key, clip in clips.items()}
    last = max(map(len, pictures.values()))
    tasks = [task for task, _ in chosen]
    frames = [draw(tasks, clips, pictures, number) for number in range(last)]
    durations = [100] * (last - 1) + [round(1000 * HOLD_S)]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=75, method=6)
    solved = {row: sum(clips[row, task].success for task in tasks) for row in ROWS}
    print(f"{out}: {out.stat().st_size} bytes, solved {solved}, initial states {chosen}")


def read_video(path: Path, count: int) -> list[np.ndarray]:
    """The first `count` pictures, uint8 [height, width, 3]."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:count]


def draw(
    tasks: list[str],
    clips: dict[tuple[str, str], Clip],
    pictures: dict[tuple[str, str], list[np.ndarray]],
    number: int,
) -> Image.Image:
    """The picture at env step `number` of all films; those that have ended keep their last one in a coloured frame."""
    cell = SIDE + 2 * MARGIN
    block = CAPTION + (cell + CAPTION) * len(ROWS)
    page = Image.new("RGB", (cell * COLUMNS, block * math.ceil(len(tasks) / COLUMNS)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place, task in enumerate(tasks):
        left, start = place % COLUMNS * cell, place // COLUMNS * block
        pen.text((left + MARGIN, start + 2), task.replace("_", " "), "teal", font)
        for row, (name, title) in enumerate(ROWS.items()):
            top = start + CAPTION + row * (cell + CAPTION)
            pen.text((left + MARGIN, top + 2), title, "black", font)
            clip, shown = clips[name, task], pictures[name, task]
            colour = RUNNING if number < len(shown) - 1 else SOLVED if clip.success else FAILED
            pen.rectangle((left, top + CAPTION, left + cell - 1, top + CAPTION + cell - 1), colour)
            picture = Image.fromarray(shown[min(number, len(shown) - 1)]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (left + MARGIN, top + CAPTION + MARGIN))
    return page


if __name__ == "__main__":
    film(Path(sys.argv[1]), Path(sys.argv[2]))
