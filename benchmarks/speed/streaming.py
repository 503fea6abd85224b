"""SFT on demonstrations that don't fit into memory: `python -m benchmarks.speed.streaming [--frames 150000]`.

Makes the demonstrations with the `tabletop` suite at 256 pixels (once, under runs/bench/streaming; interrupted, it goes
on), as images and as videos, and trains on each within 1 GB. Writes docs/results/streaming.json and .md.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.speed.rollout_memory import tree_mb
from benchmarks.support.machine import this_machine
from simplevla import recipes
from simplevla.config import DemosConfig, SFTConfig, SuiteConfig
from simplevla.demonstrations import layout
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.generate import generate
from simplevla.demonstrations.images import read_image
from simplevla.evaluation.provenance import commit
from simplevla.rollout.crew import cores
from simplevla.storage import atomic_folder, write_atomically, write_json
from simplevla.training.batches import Samples
from simplevla.training.chunks import ChunkBatches
from simplevla.training.imitation import LOG_EVERY, sft, start_policy
from simplevla.training.prefetch import made_ahead
from simplevla.training.runlog import read_rows

FOLDER = Path(__file__).parents[2] / "runs" / "bench" / "streaming"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
SUITE = SuiteConfig(name="tabletop", image_size=256)
FRAMES_PER_EPISODE = 13.7
"""Mean of the suite's demonstrations, about."""
BUDGET_GB = 1.0
BATCHES = 4 * LOG_EVERY
BATCH_SIZE = 32
BYTES_PER_TRAINED_PARAMETER = 16
"""Weight, gradient, two moments, in float32."""


def images(episodes: int) -> Path:
    """Demonstrations as PNG files in parquet files."""
    folder = FOLDER / f"images_{episodes}"
    generate(DemosConfig(suite=SUITE, episodes=episodes), folder)
    return folder


def videos(source: Path) -> Path:
    """The same demonstrations with AV1 videos, a keyframe every two frames as LeRobot's writer has it, one for a data file."""
    folder = source.with_name(source.name.replace("images", "videos"))
    if folder.exists():
        return folder
    dataset = LeRobotDataset(source)
    with atomic_folder(folder) as temporary:
        shutil.copytree(source / "meta", temporary / "meta")
        info = json.loads((source / layout.INFO).read_text())
        info["video_path"] = layout.VIDEO
        for name in dataset.cameras:
            info["features"][layout.IMAGE_PREFIX + name]["dtype"] = "video"
        (temporary / layout.INFO).write_text(json.dumps(info))
        for episodes_file in sorted((temporary / "meta/episodes").glob("*/*.parquet")):
            table = pq.read_table(episodes_file)
            rows = table.to_pylist()
            at = {"chunk_index": rows[0]["data/chunk_index"], "file_index": rows[0]["data/file_index"]}
            data = source / layout.DATA.format(**at)
            frames = pq.read_table(data)
            for name in dataset.cameras:
                key = layout.IMAGE_PREFIX + name
                begins = (np.cumsum([0, *(row["length"] for row in rows)])[:-1] / dataset.fps).tolist()
                for row, begin in zip(rows, begins, strict=True):
                    row |= {f"videos/{key}/{place}": value for place, value in at.items()}
                    row[f"videos/{key}/from_timestamp"] = begin
                    row[f"videos/{key}/to_timestamp"] = begin + row["length"] / dataset.fps
                target = temporary / layout.VIDEO.format(video_key=key, **at)
                encode(target, frames[key].combine_chunks().field("bytes").to_pylist(), dataset.fps)
                frames = frames.drop_columns([key])
            (temporary / layout.DATA.format(**at)).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(frames, temporary / layout.DATA.format(**at))
            pq.write_table(pa.Table.from_pylist(rows), episodes_file)
    return folder


def encode(path: Path, files: list[bytes], fps: float) -> None:
    """Writes picture files as an AV1 video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=round(fps), options={"g": "2", "crf": "30", "preset": "12"})
        stream.height, stream.width = read_image(files[0], "the first frame").shape[:2]
        stream.pix_fmt = "yuv420p"
        for data in files:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(read_image(data, "a frame"), format="rgb24")))
        container.mux(stream.encode())


def config(dataset: Path, budget_gb: float) -> SFTConfig:
    made = replace(recipes.SFT["tabletop_nano"](), dataset=str(dataset), memory_gb=budget_gb, batch_size=BATCH_SIZE)
    return replace(made, batches=BATCHES, validate_every=BATCHES, validation_fraction=0.0, eval_episodes_per_task=0)


def child(dataset: Path, budget_gb: float, started: float) -> None:
    """Trains, in a process of its own, and prints what it saw as JSON."""
    from simplevla.policies.tinyvla.policy import TinyVLA

    first: list[float] = []
    original = TinyVLA.imitation_loss

    def noted(*arguments: Any) -> Any:
        first.append(time.time() - started)
        return original(*arguments)

    TinyVLA.imitation_loss = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        sft(config(dataset, budget_gb), Path(folder) / "run")
        rates = [row["batches_per_s"] for row in read_rows(Path(folder) / "run") if "batches_per_s" in row]
    print(json.dumps({"first_batch_s": first[0], "batches_per_s": median(rates[1:])}))


def train(dataset: Path, budget_gb: float, threads: int) -> dict[str, float]:
    """What `child` saw with so many threads of torch, and the peak memory of its process tree beside the policy's, shared pages counted once."""
    command = [sys.executable, "-m", "benchmarks.speed.streaming", "--child", str(dataset), str(budget_gb)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen([*command, str(time.time())], stdout=subprocess.PIPE, text=True, env=environment)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_mb(process.pid))
        time.sleep(0.2)
    output, _ = process.communicate()
    assert process.returncode == 0, f"training on {dataset} failed"
    policy = start_policy(config(dataset, budget_gb), LeRobotDataset(dataset))
    own = BYTES_PER_TRAINED_PARAMETER * sum(parameter.numel() for parameter in policy.parameters())
    seen: dict[str, float] = json.loads(output.splitlines()[-1])
    return {**seen, "peak_gb_above_policy": peak / 1e3 - own / 1e9}


def decoding_per_s(folder: Path) -> float:
    """Batches per second that the same processes make when nobody trains beside them."""
    settings, dataset = replace(config(folder, BUDGET_GB), batches=2 * BATCHES), LeRobotDataset(folder)
    with tempfile.TemporaryDirectory(dir=FOLDER) as spill:
        frames = dataset.streamed(Path(spill) / "encoded")
        source = ChunkBatches(frames, list(dataset.instructions), tuple(dataset.cameras), settings.chunk_length)
        batch_bytes = dataset.decoded_bytes // dataset.num_frames * BATCH_SIZE
        batches = made_ahead(source, Samples(settings, dataset, []).requests(0), batch_bytes, int(1e9 * BUDGET_GB))
        # Those made ahead while the processes started, and the first pictures of each row group, don't count.
        for _ in islice(batches, BATCHES):
            pass
        started = time.perf_counter()
        for _ in islice(batches, BATCHES):
            pass
        return BATCHES / (time.perf_counter() - started)


def measure(frames: int) -> list[dict[str, Any]]:
    """A row for each kind of pictures."""
    source = images(math.ceil(frames / FRAMES_PER_EPISODE))
    small = images(200)
    kinds = {"images": (source, small), "video": (videos(source), videos(small))}
    rows = []
    for kind, (folder, in_memory) in kinds.items():
        dataset = LeRobotDataset(folder)
        alone = max(cores() - 1, 1)
        seen, whole, decoding = train(folder, BUDGET_GB, alone), train(in_memory, 100.0, alone), decoding_per_s(folder)
        shared, all_cores = train(folder, BUDGET_GB, cores()), train(in_memory, 100.0, cores())
        limit = min(whole["batches_per_s"], decoding)
        rows.append(
            {
                "kind": kind,
                "frames": dataset.num_frames,
                "decoded_gb": dataset.decoded_bytes / 1e9,
                "encoded_gb": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9,
                **seen,
                "in_memory_batches_per_s": whole["batches_per_s"],
                "decoding_batches_per_s": decoding,
                "ratio_to_limit": seen["batches_per_s"] / limit,
                "batches_per_s_all_cores": shared["batches_per_s"],
                "in_memory_batches_per_s_all_cores": all_cores["batches_per_s"],
                "machine": this_machine(),
                "commit": commit(),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    finding = " and ".join(f"{row['ratio_to_limit']:.0%} from {row['kind']}" for row in rows)
    first = "\n".join(
        f"| {r['kind']} | {r['frames']:,} | {r['decoded_gb']:.0f} | {r['peak_gb_above_policy']:.2f} | {r['first_batch_s']:.0f} |"
        for r in rows
    )
    second = "\n".join(
        f"| {r['kind']} | {r['batches_per_s']:.2f} | {r['in_memory_batches_per_s']:.2f} | {r['decoding_batches_per_s']:.2f} | "
        f"{r['ratio_to_limit']:.0%} |"
        for r in rows
    )
    third = "\n".join(
        f"| {r['kind']} | {r['batches_per_s_all_cores']:.2f} | {r['in_memory_batches_per_s_all_cores']:.2f} | "
        f"{r['batches_per_s_all_cores'] / r['in_memory_batches_per_s_all_cores']:.0%} |"
        for r in rows
    )
    return f"""# Demonstrations that don't fit into memory

SFT within {BUDGET_GB:g} GB for pictures loses no time to decoding: {finding}, of the slower of training in memory and decoding.

| kind | frames | decoded, GB | peak beside the policy, GB | first batch after, s |
|---|---|---|---|---|
{first}

| kind | batches/s | in memory | decoding alone | share of the slower of both |
|---|---|---|---|---|
{second}

Training has a thread for each core but one here, as where a GPU trains. Where training would use all cores by itself,
decoding takes its part of them:

| kind | batches/s | in memory | share |
|---|---|---|---|
{third}

- `tabletop`, two cameras of 256 pixels, `tabletop_nano`'s SFT in batches of {BATCH_SIZE}, {BATCHES} batches, one run each.
- In memory: the same on 200 demonstrations, decoded before. Decoding alone: the same processes, with nobody training.
- The peak is of the whole process tree, shared pages once, Python and torch included.
- Command: `python -m benchmarks.speed.streaming`. Machine: {rows[0]["machine"]}. Commit {rows[0]["commit"]}. Data:
  `streaming.json`.
"""


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=150_000)
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.frames)
    write_json(RESULTS / "streaming.json", rows)
    write_atomically(RESULTS / "streaming.md", page(rows).encode())


if __name__ == "__main__":
    main()
