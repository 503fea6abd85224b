"""Small HDF5 files in the three layouts, with known content, for the tests of `simplevla import demonstrations`."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

SIZE = (6, 8)
STATE_KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def act_content(seed: int, frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observations/images/top": rng.integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8),
        "observations/images/wrist": rng.integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8),
        "observations/qpos": rng.normal(size=(frames, 3)),
        "observations/qvel": rng.normal(size=(frames, 3)),
        "action": rng.uniform(0, 1, (frames, 2)),
    }


def write_act(
    path: Path, seed: int = 0, frames: int = 5, words: str | None = "fold the towel"
) -> dict[str, np.ndarray]:
    """One episode as TinyVLA has it; returns what was recorded."""
    content = act_content(seed, frames)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        for name, values in content.items():
            file[name] = values
        if words is not None:
            file["language_raw"] = np.array([words.encode()], dtype="S64")
    return content


def jpeg_rows(images: np.ndarray) -> np.ndarray:
    """uint8 [frames, bytes]: JPEG files, filled up with zeros to the longest."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=50)
        files.append(buffer.getvalue())
    return np.stack([np.frombuffer(data.ljust(max(map(len, files)) + 3, b"\0"), np.uint8) for data in files])


def write_robomimic(
    path: Path, demos: int = 2, env_args: dict[str, object] | None = None
) -> list[dict[str, np.ndarray]]:
    made = []
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"control_freq": 20}, "env_lang": "lift the cube"}
            if env_args is None
            else env_args
        )
        for number in range(demos):
            frames = 4 + number
            content = {f"obs/{key}": rng.normal(size=(frames, width)) for key, width in STATE_KEYS.items()}
            content["obs/agentview_image"] = rng.integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8)
            content["actions"] = rng.uniform(-1, 1, (frames, 7))
            for name, values in content.items():
                # robomimic compresses what it extracts.
                data.create_dataset(f"demo_{number}/{name}", data=values, compression="gzip")
            made.append(content)
    return made


def write_libero(path: Path, late: bool = True, frames: int = 6, demos: int = 1) -> list[dict[str, np.ndarray]]:
    """Demonstrations as LIBERO publishes them; with `late` each row was seen after its action."""
    made = []
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick the akita black bowl"})
        for number in range(demos):
            joints = rng.normal(size=(frames + 1, 7)).cumsum(axis=0)
            ee = rng.normal(size=(frames, 6))
            simulator = rng.normal(size=(frames, 5))
            content = {
                "obs/agentview_rgb": rng.integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8),
                "obs/eye_in_hand_rgb": rng.integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8),
                "obs/ee_states": ee,
                "obs/ee_pos": ee[:, :3],
                "obs/ee_ori": ee[:, 3:],
                "obs/gripper_states": rng.normal(size=(frames, 2)),
                "obs/joint_states": joints[1:] if late else joints[:-1],
                "states": np.concatenate([np.arange(frames)[:, None], joints[:-1], simulator], axis=1),
                "actions": np.concatenate(
                    [rng.uniform(-1, 1, (frames, 6)), rng.choice([-1.0, 1.0], (frames, 1))], axis=1
                ),
            }
            for name, values in content.items():
                data[f"demo_{number}/{name}"] = values
            made.append(content)
    return made
