"""The three layouts in which people record demonstrations as HDF5, and the settings of an import.

`act`: a file for each episode, by ACT, Mobile ALOHA (github.com/MarkFzp/act-plus-plus, `record_episodes.py`) and
TinyVLA. `robomimic`: robomimic.github.io/docs/datasets/overview.html. `libero`:
github.com/Lifelong-Robot-Learning/LIBERO, `scripts/create_dataset.py`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt, Le

from simplevla import checked


@checked.dataclass(frozen=True, kw_only=True)
class HDF5Settings:
    """Settings that decide what an imported dataset holds."""

    layout: Literal["act", "robomimic", "libero"]
    """Layout. `act`: a file an episode (ACT, ALOHA, TinyVLA). `robomimic`: data/demo_N. `libero`: LIBERO's files."""
    cameras: tuple[str, ...] = ()
    """Cameras, each NAME=KEY, or NAME alone for one of the layout's own: fixed=agentview_image wrist. Default: all."""
    state: tuple[str, ...] = ()
    """Keys among the observations that make up the state, in this order. Default: qpos (`act`), robot0_eef_pos
    robot0_eef_quat robot0_gripper_qpos (`robomimic`), hand and fingers as our LIBERO has them (`libero`)."""
    instruction: str | None = None
    """Words for every episode, in place of what the files say."""
    fps: Annotated[float, Gt(0), Le(1000)] | None = None
    """Frames per second. Default: what the file says (`robomimic`), 20 (`libero`)."""
    pictures: Literal["keep", "flip", "turn"] | None = None
    """Change to the pictures. `flip`: the bottom row is first, as OpenGL has it. `turn`: by 180 degrees, which makes
    LIBERO's what our LIBERO gives. Default: `turn` (`libero`), else `keep`."""
    colours: Literal["rgb", "bgr"] = "rgb"
    """Order of the colours. `bgr`: red and blue are exchanged, as in JPEG files that OpenCV wrote from RGB arrays."""
    gripper: Literal["keep", "opens_0_closes_1", "opens_1_closes_0", "opens_1_closes_-1"] = "keep"
    """Meaning of the last action in the files: all but `keep` become -1 (opens) to 1 (closes), as our LIBERO has it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Places of what a demonstration consists of."""

    demos: str
    """Group of the demonstrations; empty where a file is one."""
    observations: str
    images: str
    """Group of the pictures within the observations; empty if they lie among them."""
    camera_keys: str
    """Pattern of the keys that are cameras; its group is the camera's name, unless `camera_names` has another."""
    state: tuple[tuple[str, ...], ...]
    """Keys of the state; the first of these choices that the file has."""
    actions: str
    pictures: Literal["keep", "turn"] = "keep"
    camera_names: dict[str, str] = field(default_factory=dict)


LAYOUTS = {
    "act": Layout(
        demos="",
        observations="observations",
        images="images",
        camera_keys=r"(.+)",
        state=(("qpos",),),
        actions="action",
    ),
    "robomimic": Layout(
        demos="data",
        observations="obs",
        images="",
        camera_keys=r"(.+)_image",
        state=(("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),),
        actions="actions",
    ),
    "libero": Layout(
        demos="data",
        observations="obs",
        images="",
        camera_keys=r"(agentview|eye_in_hand)_rgb",
        state=(("ee_pos", "ee_ori", "gripper_states"), ("ee_states", "gripper_states")),
        actions="actions",
        pictures="turn",
        camera_names={"agentview": "fixed", "eye_in_hand": "wrist"},
    ),
}
