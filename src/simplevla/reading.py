"""Choice of what is read of a dataset, and the names that it has here."""

import re
from typing import Annotated, Literal

from simplevla.checked import AfterValidator, dataclass
from simplevla.errors import brief, require


def _pairs(name: str, texts: tuple[str, ...], form: str) -> dict[str, str]:
    """Left side -> right side of each `LEFT=RIGHT`."""
    pairs: dict[str, str] = {}
    for text in texts:
        left, _, right = text.partition("=")
        require(bool(left.strip() and right.strip()), f"{name} is {brief(text)}; expected {form}")
        require(left not in pairs, f"{name} has {brief(left)} twice; expected it once")
        pairs[left] = right
    return pairs


def camera_features(cameras: tuple[str, ...]) -> dict[str, str]:
    """Camera -> feature, of `ReadingConfig.cameras`."""
    return _pairs("cameras", cameras, "NAME=FEATURE, such as fixed=observation.images.image")


def new_instructions(instructions: tuple[str, ...]) -> dict[str, str]:
    """The dataset's sentence -> the one that the policy is told, of `ReadingConfig.instructions`."""
    return _pairs("instructions", instructions, "'OLD SENTENCE=NEW SENTENCE'")


def _names_cameras(cameras: tuple[str, ...]) -> tuple[str, ...]:
    features = camera_features(cameras)
    for name, feature in features.items():
        require(
            re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) is not None,
            f"cameras names one {brief(name)}; expected letters, digits, '_', '.' and '-', as in fixed=FEATURE",
        )
        require(
            list(features.values()).count(feature) == 1,
            f"cameras has the feature {brief(feature)} twice; expected each under one name",
        )
    return cameras


def _replaces_instructions(instructions: tuple[str, ...]) -> tuple[str, ...]:
    new_instructions(instructions)
    return instructions


def _are_episodes(episodes: str) -> str:
    part = r"(\d{1,9}|\d{0,9}:\d{0,9})"
    require(
        re.fullmatch(rf"({part}(,{part})*)?", episodes, re.ASCII) is not None,
        f"episodes is {brief(episodes)}; expected numbers and ranges from 0 up, such as 0:100,130",
    )
    return episodes


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Choice of what is read of a dataset, and the names that it has here; recorded with the policy."""

    cameras: Annotated[tuple[str, ...], AfterValidator(_names_cameras)] = ()
    """Cameras to read, each `NAME=FEATURE`, such as `fixed=observation.images.image`; no others are decoded. Empty:
    all, by the names that the dataset gives them."""
    state: str = "observation.state"
    """Feature that is the state."""
    actions: str = "action"
    """Feature that is the action."""
    instructions: Annotated[tuple[str, ...], AfterValidator(_replaces_instructions)] = ()
    """Instructions to be told in other words, each `OLD SENTENCE=NEW SENTENCE`."""
    episodes: Annotated[str, AfterValidator(_are_episodes)] = ""
    """Episodes to read, such as `0:100,130`, ends exclusive; files of others may be missing. Empty: all."""
    idle_frames: Literal["keep", "drop"] = "keep"
    """`drop`: no sample begins at a frame whose state and action are those of the frame before."""
