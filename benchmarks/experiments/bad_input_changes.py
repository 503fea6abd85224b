"""Ways to make a valid file a bad one: by hand, and by chance."""

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

NESTED = "[" * 200_000
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 10**9, 10**30, -(2**63), 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "4",
        "null",
        "[/]",
        "[red]x[/red]",
        "\x1b[31mred",
        "a\0b",
        "x" * 100_000,
        "é\u202e",
        "../../etc/passwd",
        "{x:>1000000000}",
    ),
    *([], {}, [[]], [None], [1, 2, 3], ["a"], {"a": 1}, [1e400], {"": None}, [[[[[[[[]]]]]]]]),
]
"""Values to put anywhere in JSON."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all that is in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def change_json(value: Any, chance: random.Random) -> Any:
    """The value with one change."""
    path = chance.choice(places(value))
    if not path:
        return chance.choice([*NASTY, [value], {"a": value}])
    owner, key = at(value, path[:-1]), path[-1]
    way = chance.randrange(6)
    if way == 0:
        del owner[key]
    elif way == 1 and isinstance(owner, dict):
        owner[chance.choice([f"{key}x", f"{key}"[:-1], "[/]", "x" * 5000])] = owner.pop(key)
    elif way == 2 and isinstance(owner, list):
        owner.extend(owner[key : key + 1] * chance.choice([1, 3, 1000]))
    elif way == 3 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        owner[key] = chance.choice(
            [-owner[key], owner[key] + 1, owner[key] * 10**6, float(owner[key]), str(owner[key])]
        )
    else:
        owner[key] = chance.choice(NASTY)
    return value


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """The bytes cut, turned, doubled, filled or replaced."""
    start = chance.randrange(len(data) + 1)
    changed = bytearray(data)
    way = chance.randrange(6)
    if way == 0:
        return data[:start]
    if way == 1:
        for _ in range(chance.choice([1, 3, 30])):
            if changed:
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if way == 2:
        return data[:start] + bytes(chance.randrange(256) for _ in range(20)) + data[start:]
    if way == 3:
        return data[:start] + data[start + chance.choice([1, 8, 100]) :]
    if way == 4:
        # The beginning holds lengths and headers.
        for _ in range(3):
            if changed:
                changed[chance.randrange(min(len(changed), 64))] = chance.choice([0, 255, 127, 128])
        return bytes(changed)
    return chance.choice([b"", b"\0" * 64, NESTED.encode(), b"{}", b"[]", b"\xff\xfe", data + data])


def _change_table(path: Path, chance: random.Random) -> None:
    table = pq.read_table(path)
    name = chance.choice(table.column_names)
    i = table.column_names.index(name)
    way = chance.randrange(6)
    if way == 0:
        table = table.drop_columns([name])
    elif way == 1:
        table = table.rename_columns([f"{other}x" if other == name else other for other in table.column_names])
    elif way == 2:
        table = table.slice(0, chance.choice([0, 1, len(table) - 1]))
    elif way == 3:
        value = chance.choice([None, "text", 10**12, -1, 2.5, float("nan"), [1.0], ["a", None], b"\x89PNG", {"a": 1}])
        table = table.set_column(i, name, pa.array([value] * len(table)))
    elif way == 4:
        table = table.append_column(name, table[name])
    else:
        table = pa.concat_tables([table, table])
    pq.write_table(table, path)


def _change_tensors(path: Path, chance: random.Random) -> None:
    tensors = load_file(path)
    name = chance.choice(sorted(tensors))
    way = chance.randrange(7)
    tensor = tensors.pop(name)
    if way == 1:
        tensors[f"{name}x"] = tensor
    elif way == 2:
        tensors[name] = tensor.to(
            chance.choice([torch.float64, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn])
        )
    elif way == 3:
        tensors[name] = tensor.flatten()[: chance.choice([0, 1, 2])].clone()
    elif way == 4:
        tensors[name] = torch.full_like(tensor, chance.choice([float("nan"), float("inf"), 1e30]))
    elif way == 5:
        tensors[name] = tensor.unsqueeze(0)
    elif way == 6:
        tensors[name] = tensor.flatten()[0].clone()
    save_file(
        tensors,
        path,
        metadata={"simplevla": chance.choice(["{}", "[", NESTED, '{"beside": 3}', '{"beside": {"config.json": 1}}'])},
    )


def change_file(path: Path, chance: random.Random) -> None:
    """Change one file by chance, as fits it or in its bytes."""
    if chance.random() < 0.08:
        path.unlink()
        if chance.random() < 0.5:
            path.mkdir()
    elif path.suffix == ".json" and chance.random() < 0.85:
        path.write_text(json.dumps(change_json(json.loads(path.read_text()), chance)))
    elif path.suffix == ".jsonl" and chance.random() < 0.85:
        lines = path.read_text().splitlines()
        row = chance.randrange(len(lines))
        lines[row] = json.dumps(change_json(json.loads(lines[row]), chance))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet" and chance.random() < 0.7:
        try:
            _change_table(path, chance)
        except pa.ArrowException:
            path.write_bytes(b"PAR1")
    elif path.suffix == ".safetensors" and chance.random() < 0.6:
        _change_tensors(path, chance)
    else:
        path.write_bytes(change_bytes(path.read_bytes(), chance))


def edit(name: str, *place: Any, value: Any) -> Callable[[Path], None]:
    """Puts `value` at a place in the JSON file `name`."""

    def change(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        at(whole, place[:-1])[place[-1]] = value
        (folder / name).write_text(json.dumps(whole))

    return change


def content(name: str, data: bytes) -> Callable[[Path], None]:
    """Gives the file `name` other bytes."""
    return lambda folder: (folder / name).write_bytes(data) and None


def column(name: str, key: str, make: Callable[[pa.Table], pa.Array | None]) -> Callable[[Path], None]:
    """Gives a column of a table other values, or takes it away."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / name)
        values = make(table)
        i = table.column_names.index(key)
        pq.write_table(table.remove_column(i) if values is None else table.set_column(i, key, values), folder / name)

    return change


def picture(side: int) -> Callable[[Path], None]:
    """Makes the first camera's pictures black squares, small files that are large in memory."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")

    def values(table: pa.Table) -> pa.Array:
        return pa.array([{"bytes": buffer.getvalue(), "path": None}] * len(table))

    return column("data/chunk-000/file-000.parquet", "observation.images.front", values)


def shared_lists(folder: Path) -> None:
    """A pickle of few bytes that stands for 2**27 numbers."""
    values: Any = [0.0, 0.0]
    for _ in range(26):
        values = [values, values]
    names = ("action_mean", "action_std", "action_min", "action_max", "qpos_mean", "qpos_std")
    (folder / "dataset_stats.pkl").write_bytes(pickle.dumps(dict.fromkeys(names, values)))


def tensor(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Replaces a tensor in the pickled weights."""

    def change(folder: Path) -> None:
        file = folder / "non_lora_trainables.bin"
        tensors = torch.load(file, weights_only=True)
        name = next(name for name, x in tensors.items() if x.ndim == 2)
        torch.save({**tensors, name: make(tensors[name])}, file)

    return change


def large_ids(folder: Path) -> None:
    """Gives words ids that no word embedding has a row for."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"] = {word: number * 1000 for word, number in whole["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)


def arguments(*given: str) -> Callable[[Path], None]:
    """Writes a command line."""
    return lambda folder: (folder / "arguments.json").write_text(json.dumps(given)) and None


DATA, EPISODES, TASKS = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
)
WRITTEN: list[tuple[str, Callable[[Path], object]]] = [
    *(
        ("policy", edit("config.json", key, value=value))
        for key, value in (
            ("state_dim", "4"),
            ("vision", None),
            ("architecture", []),
            ("architecture", "[/]"),
            ("chunk_length", 10**9),
            ("cameras", "front"),
            ("cameras", []),
            ("head", {}),
            ("bins", 2**40),
            ("language", []),
            ("diffusion", 5),
        )
    ),
    *(
        ("policy", edit("config.json", "language", key, value=value))
        for key, value in (
            ("layers", 1_000_000),
            ("layers", 500),
            ("hidden_size", 2**20),
            ("heads", 0),
            ("heads", 7),
            ("vocab_size", 2**20),
            ("init_std", -1.0),
            ("max_instruction_tokens", 0),
            ("prompt", "{instruction}"),
        )
    ),
    *(
        ("policy", edit("config.json", "vision", key, value=value))
        for key, value in (
            ("kernels", [2, 2]),
            ("strides", [0, 1]),
            ("channels", [10**9, 1]),
            ("tokens", 10**9),
            ("keypoints", 0),
            ("kind", "siglip"),
        )
    ),
    ("diffusion policy", edit("config.json", "diffusion", "unet", "channels", value=[2**20] * 30)),
    ("diffusion policy", edit("config.json", "diffusion", value=None)),
    ("diffusion policy", edit("config.json", "diffusion", "train_steps", value=10**9)),
    *(
        (kind, content(name, NESTED.encode()))
        for kind, name in (
            ("policy", "config.json"),
            ("policy", "statistics.json"),
            ("policy", "trained_on.json"),
            ("policy", "tokenizer.json"),
            ("policy with adapters", "adapters/bank.json"),
            ("adapter", "adapter.json"),
            ("adapter of peft", "adapter_config.json"),
            ("dataset", "meta/info.json"),
            ("dataset", "meta/stats.json"),
            ("results", "a.json"),
            ("run", "config.json"),
            ("run", "metrics.jsonl"),
            ("run", "environment.json"),
            ("run", "checkpoints/update_000002/manifest.json"),
            ("continual run", "continual.json"),
            ("published TinyVLA", "config.json"),
            ("published OpenVLA-OFT", "config.json"),
            ("published OpenVLA-OFT", "model.safetensors.index.json"),
            ("published TinyVLA with LoRA", "adapter_config.json"),
        )
    ),
    ("policy", large_ids),
    ("run's config", edit("config.json", "updates", value="5")),
    ("run's config", edit("config.json", "device", value="meta")),
    ("run's config", edit("config.json", "policy", value="a\0b")),
    ("dataset", column(DATA, "episode_index", lambda table: None)),
    ("dataset", column(EPISODES, "episode_index", lambda table: None)),
    ("dataset", column(TASKS, "task", lambda table: pa.array([None] * len(table), pa.string()))),
    ("dataset", edit("meta/info.json", "features", "action", value={"dtype": "float32"})),
    *(
        ("dataset", edit("meta/info.json", "data_path", value=value))
        for value in (
            "data/{x:>1000000000}.parquet",
            "data/{chunk_index:>1000000000}.parquet",
            "{episode}",
            "",
            "/",
            "**/**/**",
            "a\0b",
            "{",
            "{chunk_index.real}",
        )
    ),
    ("dataset with videos", edit("meta/info.json", "video_path", value="{video_key:>1000000000}")),
    ("dataset with videos", edit("meta/info.json", "video_path", value="../{video_key}")),
    ("dataset", edit("meta/info.json", "features", "observation.images.front", "shape", value=[10**6, 10**6, 3])),
    ("dataset", edit("meta/info.json", "fps", value=1e-300)),
    ("dataset", edit("meta/stats.json", "action", value=[[10**400]])),
    ("dataset", picture(20_000)),
    ("dataset", picture(13_000)),
    ("published TinyVLA", shared_lists),
    ("published TinyVLA", content("dataset_stats.pkl", b"\x80\x04]r\xff\xff\xff\x7f.")),
    ("published TinyVLA", edit("config.json", "chunk_size", value=10**9)),
    ("published TinyVLA", edit("config.json", "concat", value=["token_cat"])),
    ("published TinyVLA", edit("config.json", "rope_parameters", value=[1])),
    ("published TinyVLA", edit("preprocessor_config.json", "image_mean", value=["a", "b", "c"])),
    ("published TinyVLA with LoRA", tensor(lambda x: x.to_sparse())),
    ("published TinyVLA with LoRA", tensor(lambda x: torch.zeros(1).expand(10**6, 10**6))),
    ("published TinyVLA with LoRA", tensor(lambda x: x.to("meta"))),
    ("published TinyVLA with LoRA", tensor(lambda x: torch.complex(x, x))),
    ("published TinyVLA with LoRA", edit("adapter_config.json", "target_modules", value=[["a"], 5])),
    ("published TinyVLA with LoRA", edit("adapter_config.json", "r", value=0)),
    ("adapter of peft", edit("adapter_config.json", "target_modules", value="(a+)+$")),
    ("adapter of peft", edit("adapter_config.json", "target_modules", value="(.*)*[")),
    ("run", lambda folder: shutil.rmtree(folder / "checkpoints")),
    ("run", content("metrics.jsonl", b'{"update": 1000000000}\n')),
    ("run", content("metrics.jsonl", b'{"update": 1, "entropy": 1e999}\n')),
    ("run", edit("videos/after.json", "clips", 0, "file", value="../config.json")),
    ("results", edit("a.json", "suite", value="[/]")),
    ("results", edit("a.json", "errors", value={"x": {"count": "2", "last": []}})),
    *(
        ("arguments", arguments(*line))
        for line in (
            ("train", "--policy", "nowhere", "--run", "out", "--optimizer.max-grad-norm", "-1"),
            ("train", "--policy", "nowhere", "--run", "out", "--seed", "-1"),
            ("train", "--policy", "nowhere", "--run", "out", "--device", "meta"),
            ("train", "--policy", "nowhere", "--run", "out", "--suite.name", "json:loads"),
            ("train", "--policy", "nowhere", "--run", "out", "--suite.name", ":"),
            ("train", "--policy", "nowhere", "--run", "out", "--suite.name", "..:x"),
            ("train", "--policy", "[/]", "--run", "out"),
            ("check-suite", "json:loads"),
            ("check-suite", "json:nothing"),
            ("check-suite", "\x1b[31m"),
            ("check-suite", "os:getcwd"),
            ("eval", "--policy", "nowhere", "--suite.name", "json:loads"),
            ("eval", "--policy", "x" * 300),
            ("eval", "--policy", "[/]"),
            ("sft", "--dataset", "nowhere", "--run", "out", "--validate-every", "0"),
            ("sft", "--dataset", "x" * 5000, "--run", "out"),
            ("demos", "nowhere", "--out", "out"),
            ("demos", "tabletop", "--episodes", "0", "--out", "out"),
            ("plan", "tabletop_nano", "--gpus", "-1", "--memory", "nan"),
            ("plan", "tabletop_nano", "--gpus", "0", "--memory", "8", "--microbatch-decisions", "1000000000"),
            ("plan", "tabletop_nano", "--gpus", "1", "--memory", "8", "--cores", "1000000000"),
            ("plan", "tabletop_nano", "--gpus", "1", "--memory", "8", "--adapter-rank", "1000000"),
            ("plan", "tabletop_nano", "--gpus", "0", "--memory", "inf"),
            ("compare", "nowhere", "/"),
            ("report", "/dev/null"),
            ("adapters", "list", "/"),
            ("adapters", "show", "/dev/null"),
            ("import", "tinyvla", "/", "out", "--cameras", "a"),
            ("import", "openvla-oft", "/", "out", "--cameras", "a"),
            ("list", "[/]"),
            ("",),
            ("\udcff",),
            ("continual", "tabletop_continual", "--adapter.alpha", "inf", "--run", "out"),
        )
    ),
]
"""(kind, change) of those written by hand."""
FLAGS = (
    *("--updates", "--seed", "--sampling.groups", "--sampling.group-size", "--sampling.temperature", "--loss.clip-low"),
    *(
        "--optimizer.lr",
        "--optimizer.betas",
        "--optimizer.warmup-steps",
        "--minibatches",
        "--rollout.workers",
        "--eval-every",
    ),
    *(
        "--rollout.slots-per-worker",
        "--rollout.chunk-timeout-s",
        "--ray.cpus",
        "--stop-at",
        "--suite.name",
        "--suite.tasks",
    ),
    *("--suite.image-size", "--device", "--policy", "--denoising.ratio", "--no-such-flag"),
)
VALUES = (
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "1e400",
    "1000000000",
    "x",
    "",
    "[/]",
    "None",
    "True",
    "0.5",
    "\x1b[31m",
    "9" * 5000,
    "json:loads",
    "a:b:c",
)


def change_arguments(folder: Path, chance: random.Random) -> None:
    """Writes a command line with flags by chance, of a policy that isn't there."""
    flags = [word for _ in range(chance.choice([1, 2, 4])) for word in (chance.choice(FLAGS), chance.choice(VALUES))]
    name = chance.choice(["tabletop_nano", "libero_object_nano", "nowhere"])
    arguments("train", name, "--policy", "nowhere", "--run", "out", *flags)(folder)
