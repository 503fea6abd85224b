"""Videos of a policy at work: greedy episodes from chosen initial states, one picture per env step."""

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from simplevla.checked import Count, dataclass
from simplevla.config import EvalConfig
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluation_request
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.rollout.workers import check_result
from simplevla.storage import read_as, write_atomically, write_json
from simplevla.suites.base import Environment, Suite
from simplevla.types import Task

HOLD_S = 0.6
"""The last picture stays this long, so that the outcome can be seen in a loop."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recorded episode."""

    task: str
    instruction: str
    initial_state: Count
    success: bool
    env_steps: Count
    file: str
    """Name of the video in the same folder."""
    policy_sha256: str | None = None
    """Fingerprint of the policy's folder, where it came from one."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The list beside the videos."""

    clips: tuple[Clip, ...]


def record_videos(
    suite: Suite,
    policy: Policy,
    pairs: Iterable[tuple[Task, int]],
    folder: Path,
    prefix: str,
    policy_sha256: str | None = None,
) -> list[Clip]:
    """Rolls `policy` out greedily from each (task, initial state) in this process and films it.

    Writes `PREFIX_TASK_STATE.mp4` (or .webp where PyAV has no H.264 encoder) per pair and `PREFIX.json`, which lists
    them. A film whose environment breaks is left out, with a warning. Videos play in real time, at the suite's control
    rate.

    Args:
        prefix: for example `before` or `after`.
        policy_sha256: the policy's fingerprint.
    """
    environment = suite.make_environment()
    clips: list[Clip] = []
    try:
        for task, initial_state in pairs:
            try:
                pictures, success = _film(environment, policy, task, initial_state)
            except UserError:
                raise
            except Exception as error:
                warnings.warn(
                    f"no film {prefix} RL of task {task.name!r}, initial state {initial_state}: the environment raised "
                    f"{type(error).__name__}: {error}. The next report tries again",
                    stacklevel=2,
                )
                environment.close()
                environment = suite.make_environment()
                continue
            data, ending = encode_video(pictures, suite.spec.control_hz)
            file = f"{prefix}_{film_stem(task.name, initial_state)}{ending}"
            write_atomically(folder / file, data)
            clips.append(
                Clip(
                    task=task.name,
                    instruction=task.instruction,
                    initial_state=initial_state,
                    success=success,
                    env_steps=len(pictures) - 1,
                    file=file,
                    policy_sha256=policy_sha256,
                )
            )
    finally:
        environment.close()
    write_json(folder / f"{prefix}.json", asdict(Clips(clips=tuple(clips))))
    return clips


def film_stem(task: str, state: int | None) -> str:
    """Middle of a film's file name; a task's name may have what a file's can't.

    >>> film_stem("kitchen/open", 3)
    'kitchen_open_003'
    """
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', task)}_{state or 0:03d}"


def read_clips(folder: Path, prefix: str) -> list[Clip]:
    """Reads what `record_videos` wrote; empty if it wasn't called.

    Raises:
        UserError: the list is damaged, or a video that it names is missing.
    """
    path = folder / f"{prefix}.json"
    if not path.exists():
        return []
    clips = list(read_as(path, Clips).clips)
    for clip in clips:
        if Path(clip.file).name != clip.file or not (folder / clip.file).is_file():
            raise UserError(f"{path} names {clip.file}, which is not in {folder}. Record the videos again.")
    return clips


def encode_video(pictures: Sequence[np.ndarray], fps: float) -> tuple[bytes, str]:
    """uint8 [height, width, 3] pictures as (file content, `.mp4` or `.webp`), the last one held for a moment."""
    held = [*pictures, *[pictures[-1]] * round(HOLD_S * fps)]
    try:
        av.codec.Codec("libx264", "w")
    except ValueError:
        return _encode_webp(held, fps), ".webp"
    return _encode_h264(held, fps), ".mp4"


def _encode_h264(pictures: Sequence[np.ndarray], fps: float) -> bytes:
    height, width = (side + side % 2 for side in pictures[0].shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            # H.264 in 4:2:0 needs even sides.
            padding = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(picture, padding, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _encode_webp(pictures: Sequence[np.ndarray], fps: float) -> bytes:
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=80)
    return buffer.getvalue()


def _film(environment: Environment, policy: Policy, task: Task, initial_state: int) -> tuple[list[np.ndarray], bool]:
    """(one picture before the first and after each env step, success)."""
    observation = environment.reset(task, initial_state)
    pictures, success, over = [environment.render()], False, False
    device = next(policy.parameters(), torch.zeros(0)).device
    # The evaluation's own: a diffusion head starts from noise even where it is greedy.
    generators = [evaluation_request(task, initial_state, EvalConfig().seed).generator()]
    while not over and len(pictures) <= task.horizon:
        batch = ObservationBatch.stacked([observation], [task.instruction]).to(device)
        with torch.no_grad():
            chunk = policy.act(batch, Sampling(greedy=True), generators).actions[0]
        for action in chunk[: task.horizon + 1 - len(pictures)]:
            result = environment.step_chunk(action[None])
            check_result(result, 1)
            pictures.append(environment.render())
            observation, success = result.observation, bool(result.success)
            over = success or result.failed
            if over:
                break
    return pictures, success
