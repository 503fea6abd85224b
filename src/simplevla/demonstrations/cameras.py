"""The cameras of a dataset: which features are pictures in colour, and how large they are."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplevla.demonstrations import layout
from simplevla.demonstrations.choice import known
from simplevla.errors import UserError

COLOUR_CHANNELS = (3, 4)
"""RGB, or RGB and a mask that is dropped. A camera of one channel is a depth map, as for LeRobot."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One camera in colour."""

    key: str
    """Camera's feature in `info.json`."""
    size: tuple[int, int]
    """(height, width)."""
    video: bool
    """True if the pictures are in video files, not in the parquet files."""


def named_cameras(folder: Path, features: dict[str, dict[str, Any]], chosen: Mapping[str, str]) -> dict[str, Camera]:
    """The cameras `chosen`, name -> feature, in this order; all of `find_cameras` if none is.

    LIBERO as LeRobot has it (`lerobot/libero`: `observation.images.image` and `observation.images.image2`) needs names
    only: its pictures are turned by 180 degrees, as our suites' are (`LiberoProcessorStep` of LeRobot's
    `processor/env_processor.py` turns the simulator's for policies trained on it), and the state is the same eight
    numbers, hand position, its axis-angle, both fingers.

    Raises:
        UserError: a feature isn't there, or is no camera in colour.
    """
    if not chosen:
        return find_cameras(folder, features)
    pictures = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    cameras = {}
    for name, key in chosen.items():
        if key not in pictures:
            raise UserError(
                f"cameras has {name}={key}; {folder} has the cameras {known(key, pictures)}"
                if pictures
                else f"cameras has {name}={key}; {folder} has no camera"
            )
        if _is_depth(features[key]):
            raise UserError(
                f"cameras has {name}={key}, whose shape is {features[key]['shape']}: a depth map or the like; expected a "
                "camera in colour"
            )
        size = _size(f"{folder}: feature {key!r}", features[key])
        cameras[name] = Camera(key=key, size=size, video=features[key]["dtype"] == "video")
    return cameras


def find_cameras(folder: Path, features: dict[str, dict[str, Any]]) -> dict[str, Camera]:
    """The cameras by name, in the order of the features; depth maps are left out with a warning.

    Raises:
        UserError: there is no camera in colour, two have the same name, or `names` and `shape` contradict each other.
    """
    cameras: dict[str, Camera] = {}
    for key, feature in features.items():
        if feature["dtype"] not in ("image", "video"):
            continue
        if _is_depth(feature):
            warnings.warn(
                f"{folder}: the camera {key!r} is left out: its shape is {feature['shape']}, a depth map or the like, and "
                "policies here look at colours",
                stacklevel=4,
            )
            continue
        height, width = _size(f"{folder}: feature {key!r}", feature)
        name = key.removeprefix(layout.IMAGE_PREFIX).removeprefix("observation.")
        if name in cameras:
            raise UserError(f"{folder}: the features {cameras[name].key!r} and {key!r} are both the camera {name!r}")
        cameras[name] = Camera(key=key, size=(height, width), video=feature["dtype"] == "video")
    if not cameras:
        raise UserError(
            f"{folder} has no camera in colour; expected a feature such as {layout.IMAGE_PREFIX}front of the shape "
            "[height, width, 3]"
        )
    return cameras


def _is_depth(feature: dict[str, Any]) -> bool:
    """True for one channel, or a mark that LeRobot sets or set (`depth_keys` in its `dataset_metadata.py`)."""
    shape = feature["shape"]
    if len(shape) == 2 or 1 in (*shape[:1], *shape[-1:]):
        return True
    places = [place for place in (feature, feature.get("info"), feature.get("video_info")) if isinstance(place, dict)]
    return any(place.get(mark) for place in places for mark in ("is_depth_map", "video.is_depth_map"))


def _size(where: str, feature: dict[str, Any]) -> tuple[int, int]:
    """(height, width), in whatever order the feature has its axes."""
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, dict):
        # Either {"axes": ["height", "width", "channels"]}, or a key for each axis.
        values = list(names.values())
        names = values[0] if len(values) == 1 and isinstance(values[0], list) else list(names)
    axes = [str(name).lower()[:1] for name in names or []]
    if sorted(axes) != ["c", "h", "w"] and len(axes) in (0, 3):
        axes = ["h", "w", "c"] if shape and shape[-1] in COLOUR_CHANNELS else ["c", "h", "w"]
    if len(shape) != 3 or len(axes) != 3 or shape[axes.index("c")] not in COLOUR_CHANNELS:
        raise UserError(
            f"{where} has the shape {shape} and the names {feature.get('names')}, which contradict each other; expected "
            "such as [480, 640, 3] with ['height', 'width', 'channels']; correct meta/info.json"
        )
    return int(shape[axes.index("h")]), int(shape[axes.index("w")])
