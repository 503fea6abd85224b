"""Looks at the demonstrations in an HDF5 file: shapes, cameras, words; no picture and hardly a number is read."""

import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from simplevla.demonstrations.hdf5 import (
    check_storage,
    find,
    members,
    picture_size,
    read_text,
    read_vectors,
    vector_width,
)
from simplevla.demonstrations.hdf5_settings import LAYOUTS, HDF5Settings, Layout
from simplevla.errors import UserError, brief
from simplevla.storage import parse_json
from simplevla.suites.libero import conventions

LIBERO_DIMENSIONS = (len(conventions.STATE_NAMES), len(conventions.ACTION_NAMES))
TEXTS = ("language_raw", "language_instruction", "instruction", "language")
"""Datasets or attributes that hold an instruction: the first is TinyVLA's."""
JSON_TEXTS = {"ep_meta": "lang", "problem_info": "language_instruction", "env_args": "env_lang"}
"""Attributes that hold JSON -> its key with an instruction: robocasa's, LIBERO's, robomimic's."""
FEWEST_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One demonstration in a file, looked at but not read: shapes, names, words."""

    path: Path
    demo: str
    """Group in the file; empty if the file is the demonstration."""
    frames: int
    cameras: dict[str, str]
    """Camera -> dataset of its pictures."""
    sizes: dict[str, tuple[int, int]]
    """Camera -> (height, width)."""
    state: tuple[str, ...]
    state_names: tuple[str, ...]
    actions: str
    action_names: tuple[str, ...]
    instruction: str
    task: str | None
    """Task's name in LIBERO."""
    fps: float | None
    late: bool
    """True if row i holds what was seen after action i, so that action i + 1 was chosen by it."""

    def __str__(self) -> str:
        return f"{self.path.name}, {self.demo}" if self.demo else self.path.name


def demonstrations_in(file: h5py.File, layout: str) -> list[str]:
    """Groups of the demonstrations in a file; one empty name where the file is one.

    Raises:
        UserError: there is none; says which layout it looks like.
    """
    place = LAYOUTS[layout].demos
    if not place:
        return [""]
    demos = [f"{place}/{name}" for name in members(file, place)]
    if not demos:
        raise UserError(f"{file.filename} has no demonstrations in {place!r}; {_guess(file)}")
    return demos


def describe(file: h5py.File, path: Path, demo: str, settings: HDF5Settings) -> Recording:
    """Looks at a demonstration's shapes and attributes; its pictures and numbers aren't read yet.

    Raises:
        UserError: a part is missing, or has another type, shape or length; says which, and what was expected.
    """
    layout = LAYOUTS[settings.layout]
    observations = f"{demo}/{layout.observations}".strip("/")
    choices = (settings.state,) if settings.state else layout.state
    keys = next((keys for keys in choices if all(find(file, f"{observations}/{key}") for key in keys)), choices[0])
    state = tuple(f"{observations}/{key}" for key in keys)
    actions = f"{demo}/{layout.actions}".strip("/")
    cameras = _cameras(file, f"{observations}/{layout.images}".strip("/"), layout, settings)
    data = {name: dataset(file, name) for name in (*cameras.values(), *state, actions)}
    widths = [vector_width(data[name]) for name in (*state, actions)]
    sizes = {camera: picture_size(data[name]) for camera, name in cameras.items()}
    lengths = {name: len(one) for name, one in data.items()}
    frames = lengths[actions]
    other = next((name for name, length in lengths.items() if length != frames), None)
    if other is not None:
        raise UserError(
            f"{path}: {other!r} has {lengths[other]} frames, {actions!r} has {frames}; expected one of each per frame: "
            "mend it or leave it out with --skip-broken"
        )
    late = settings.layout == "libero" and _is_late(file, demo, frames)
    if frames - late < FEWEST_FRAMES:
        raise UserError(
            f"{path}: {actions!r} has {frames} frames; expected at least {FEWEST_FRAMES + late}: leave it out with --skip-broken"
        )
    state_names = tuple(f"{key}_{i}" for key, width in zip(keys, widths, strict=False) for i in range(width))
    action_names = tuple(f"action_{i}" for i in range(widths[-1]))
    if settings.layout == "libero":
        if widths[-1] != LIBERO_DIMENSIONS[1] or (not settings.state and len(state_names) != LIBERO_DIMENSIONS[0]):
            raise UserError(
                f"{path}: {demo!r} has {len(state_names)} numbers of state and {widths[-1]} of action; LIBERO has {LIBERO_DIMENSIONS[0]} "
                f"and {LIBERO_DIMENSIONS[1]}; {_guess(file)}"
            )
        action_names = conventions.ACTION_NAMES
        state_names = state_names if settings.state else conventions.STATE_NAMES
        _check_convention(file, settings)
    task = re.fullmatch(r"(\w+)_demo", path.stem, re.ASCII)
    named = task[1] if task and settings.layout == "libero" else None
    return Recording(
        path=path,
        demo=demo,
        frames=frames - late,
        cameras=cameras,
        sizes=sizes,
        state=state,
        state_names=state_names,
        actions=actions,
        action_names=action_names,
        instruction=_instruction(file, demo, named, settings),
        task=named,
        fps=settings.fps or _fps(file, settings.layout),
        late=late,
    )


def _cameras(file: h5py.File, group: str, layout: Layout, settings: HDF5Settings) -> dict[str, str]:
    """Camera -> dataset, as `--cameras` says, or all of the layout's."""
    keys = members(file, group)
    own = {layout.camera_names.get(m[1], m[1]): key for key in keys if (m := re.fullmatch(layout.camera_keys, key))}
    chosen: dict[str, str] = {}
    for text in settings.cameras or tuple(own):
        name, given, key = text.partition("=")
        key = key if given else own.get(name, name)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name) or name in chosen:
            raise UserError(
                f"{file.filename}: the camera {name!r} is named twice or isn't a name of letters, digits, '_' and '-'; give --cameras NAME={key} ..."
            )
        if key not in keys:
            raise UserError(
                f"{file.filename} has no camera {key!r} in {group!r}; it holds {_list(keys)}; {_guess(file)}"
            )
        chosen[name] = f"{group}/{key}"
    if not chosen:
        raise UserError(f"{file.filename} has no pictures in {group!r}; it holds {_list(keys)}; {_guess(file)}")
    return chosen


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset called `name`, whole and readable."""
    node = find(file, name)
    if not isinstance(node, h5py.Dataset):
        group = name.rpartition("/")[0]
        raise UserError(
            f"{file.filename} has no dataset {name!r}; {repr(group) if group else 'it'} holds {_list(members(file, group))}; {_guess(file)}"
        )
    check_storage(node)
    return node


def _list(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "nothing"


def _guess(file: h5py.File) -> str:
    """End of a message: the layout that a file looks like, and what to do."""
    demos = members(file, "data")
    keys = members(file, f"data/{demos[0]}/obs") if demos else []
    if "observations" in members(file, ""):
        found = "act"
    elif {"agentview_rgb", "eye_in_hand_rgb"} & set(keys):
        found = "libero"
    elif keys or "data" in members(file, ""):
        found = "robomimic"
    else:
        return (
            "it looks like none of the layouts act, robomimic, libero: write it as one of them (docs/your_own_data.md)"
        )
    return f"it looks like --layout {found}"


def _is_late(file: h5py.File, demo: str, frames: int) -> bool:
    """True if the joints in row i are those of the simulator's state before action i + 1, not before action i.

    LIBERO's files are so; copies of them that were recorded again are not. Without `states` nobody knows.
    """
    joints, states = (find(file, f"{demo}/{name}") for name in ("obs/joint_states", "states"))
    if not isinstance(joints, h5py.Dataset) or not isinstance(states, h5py.Dataset) or frames < FEWEST_FRAMES:
        return False
    if not (len(joints.shape) == len(states.shape) == 2 and len(joints) == len(states) == frames):
        return False
    for data in (joints, states):
        check_storage(data)
    width = vector_width(joints)
    # A state begins with the time, then the arm's joints.
    if vector_width(states) < 1 + width:
        return False
    seen, simulated = read_vectors(joints), read_vectors(states)[:, 1 : 1 + width]
    return bool(np.abs(seen[:-1] - simulated[1:]).mean() < 0.5 * np.abs(seen[1:] - simulated[1:]).mean())


def _check_convention(file: h5py.File, settings: HDF5Settings) -> None:
    """Refuses LIBERO files that were recorded with the top row first, unless `--pictures` says what to do."""
    data, name = find(file, "data"), "macros_image_convention"
    if settings.pictures is None and data is not None and name in data.attrs and read_text(data, name) != "opengl":
        raise UserError(
            f"{file.filename}: {name} is {read_text(data, name)!r}; expected 'opengl', the bottom row first: say by --pictures what "
            "is to be done with them"
        )


def _instruction(file: h5py.File, demo: str, task: str | None, settings: HDF5Settings) -> str:
    """The words that `--instruction`, the file, or the name of LIBERO's task says; LIBERO's in lower case."""
    words = settings.instruction
    if words is None:
        words = _language(file, demo)
        if task:
            words = words.lower() if words else conventions.published_instruction(task)
    if words is None:
        raise UserError(
            f"{file.filename} says nowhere what is to be done{f' in {demo!r}' if demo else ''}; give --instruction 'WORDS'"
        )
    plain = " ".join(words.split())
    if not plain or not plain.isprintable():
        raise UserError(
            f"{file.filename}: the instruction is {brief(words)}; expected words: give --instruction 'WORDS'"
        )
    return plain


def _language(file: h5py.File, demo: str) -> str | None:
    """The instruction, from the demonstration, its group, or the file; None if it is nowhere."""
    for place in dict.fromkeys((demo, demo.rpartition("/")[0], "")):
        group = find(file, place)
        assert group is not None, "the demonstration was found before"
        for name in TEXTS:
            node = find(file, f"{place}/{name}")
            if isinstance(node, h5py.Dataset):
                check_storage(node)
                return read_text(node)
            if name in group.attrs:
                return read_text(group, name)
        for name, key in JSON_TEXTS.items():
            words = _json(group, name).get(key)
            if isinstance(words, str) and words.strip():
                return words
    return None


def _fps(file: h5py.File, layout: str) -> float | None:
    """Frames per second that the layout or the file says; None if neither does."""
    if layout == "libero":
        return conventions.CONTROL_HZ
    group = find(file, "data")
    kwargs = _json(group, "env_args").get("env_kwargs") if group is not None else None
    rate = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
    return float(rate) if isinstance(rate, int | float) and 0 < rate <= 1000 else None


def _json(group: h5py.Group, name: str) -> dict[str, object]:
    """The JSON object in an attribute; empty if there is no such attribute."""
    return (
        parse_json(read_text(group, name), f"{group.file.filename}: attribute {name!r}") if name in group.attrs else {}
    )
