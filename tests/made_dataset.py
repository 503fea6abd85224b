"""A small dataset with known content, for the tests of demonstrations."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.demonstrations.dataset import DatasetWriter, DemonstrationEpisode, LeRobotDataset
from simplevla.demonstrations.images import encode_png
from simplevla.suites.base import SuiteSpec

LENGTHS = (3, 1, 4)
INSTRUCTIONS = ("lift the block", "press the button", "lift the block")


def spec(actions: int = 2) -> SuiteSpec:
    return SuiteSpec(
        cameras={"front": (6, 8), "wrist": (4, 4)},
        state_names=("x_m", "y_m", "z_m"),
        action_names=tuple(f"a{i}" for i in range(actions)),
        action_low=(-1.0,) * actions,
        action_high=(1.0,) * actions,
        control_hz=20.0,
    )


def episodes(actions: int = 2) -> tuple[list[DemonstrationEpisode], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    made, pixels = [], []
    for number, (length, instruction) in enumerate(zip(LENGTHS, INSTRUCTIONS, strict=True)):
        images = {
            camera: rng.integers(0, 256, (length, *size, 3), dtype=np.uint8) for camera, size in spec().cameras.items()
        }
        made.append(
            DemonstrationEpisode(
                task=instruction.split()[0],
                instruction=instruction,
                initial_state=7 + number,
                attempts=1 + number,
                images={camera: [encode_png(image) for image in stack] for camera, stack in images.items()},
                state=rng.normal(size=(length, 3)).astype(np.float32),
                actions=rng.normal(size=(length, actions)).astype(np.float32),
            )
        )
        pixels.append(images)
    return made, pixels


def write(folder: Path, actions: int = 2) -> None:
    with DatasetWriter(folder, spec(actions), INSTRUCTIONS, {"suite": "made up"}) as out:
        for episode in episodes(actions)[0]:
            out.add(episode)
        out.finish()


def write_video(path: Path, images: list[np.ndarray], fps: int) -> None:
    """A lossless mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "g": "4"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "rgb24"
        stream.codec_context.time_base = Fraction(1, fps)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def to_videos(folder: Path, files: list[list[int]]) -> np.ndarray:
    """Turn the `front` images of a written dataset into videos that hold the episodes `files`; the true images [F]."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (sum(LENGTHS), 16, 24, 3), dtype=np.uint8)
    ranges = LeRobotDataset(folder).episode_ranges
    key = "observation.images.front"
    place: dict[int, dict[str, float]] = {}
    for number, members in enumerate(files):
        shown: list[np.ndarray] = []
        for episode in members:
            start, stop = ranges[episode]
            place[episode] = {
                f"videos/{key}/chunk_index": 0,
                f"videos/{key}/file_index": number,
                f"videos/{key}/from_timestamp": len(shown) / 20,
                f"videos/{key}/to_timestamp": (len(shown) + stop - start) / 20,
            }
            shown += list(images[start:stop])
        write_video(folder / f"videos/{key}/chunk-000/file-{number:03d}.mp4", shown, 20)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = [row | place[row["episode_index"]] for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(data).drop_columns([key]), data)
    info = json.loads((folder / "meta/info.json").read_text())
    info["video_path"] = layout.VIDEO
    # Channels first, as LeRobot's older datasets have it.
    info["features"][key] = {"dtype": "video", "shape": [3, 16, 24], "names": ["channels", "height", "width"]}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return images


def to_v21(folder: Path, video: str | None = None) -> None:
    """Turn a written dataset into one of v2.1 with two episodes a chunk, the pictures of the camera `video` in mp4."""
    dataset = LeRobotDataset(folder)
    frames, old = dataset.load_all(), folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(old)
    old.unlink()
    lines: dict[str, list[dict[str, object]]] = {"tasks": [], "episodes": [], "episodes_stats": []}
    lines["tasks"] = [{"task_index": i, "task": task} for i, task in enumerate(dataset.instructions)]
    for number, (start, stop) in enumerate(dataset.episode_ranges):
        part = table.slice(start, stop - start)
        if video is not None:
            key = f"observation.images.{video}"
            part = part.drop_columns([key])
            shown = list(np.asarray(frames.images[video][start:stop]))
            write_video(folder / f"videos/chunk-{number // 2:03d}/{key}/episode_{number:06d}.mp4", shown, 20)
        path = folder / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(part, path)
        instruction = dataset.instructions[frames.task_index[start]]
        lines["episodes"].append({"episode_index": number, "tasks": [instruction], "length": stop - start})
        stats = {}
        for key, values in (("observation.state", frames.state), ("action", frames.actions)):
            own = values[start:stop].astype(np.float64)
            measures = {name: getattr(own, name)(0).tolist() for name in ("min", "max", "mean", "std")}
            stats[key] = {**measures, "count": [stop - start]}
        lines["episodes_stats"].append({"episode_index": number, "stats": stats})
    for name, records in lines.items():
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("tasks.parquet", "stats.json", "episodes/chunk-000/file-000.parquet"):
        (folder / "meta" / name).unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "chunks_size": 2, "total_chunks": 2}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    if video is not None:
        info["features"][f"observation.images.{video}"]["dtype"] = "video"
    (folder / "meta/info.json").write_text(json.dumps(info))
