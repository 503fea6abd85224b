"""Meta-World's task list, protocol names and errors, and the lite mode's arithmetic: all without the benchmark's package."""

import sys

import mujoco
import numpy as np
import pytest

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.metaworld import catalog
from simplevla.suites.metaworld.lite import MAX_FACES, TEXTURE_SIZE, shrink_textures, simplify_meshes
from simplevla.suites.registry import make_suite


def test_every_task_has_an_instruction_of_its_own() -> None:
    instructions = list(catalog.INSTRUCTIONS.values())
    assert len(instructions) == len(set(instructions)) == 50
    for text in instructions:
        assert text == text.lower().strip()
        assert not text.endswith(".")
        assert len(text.split()) >= 3


@pytest.mark.parametrize(("protocol", "steps"), [("short", 200), ("metaworld", 500)])
def test_horizon_protocols(protocol: str, steps: int) -> None:
    tasks = catalog.tasks(protocol)
    assert {task.horizon for task in tasks} == {steps}
    assert all(task.horizon_reason for task in tasks)
    assert tasks[0].name == "assembly-v3"
    assert tasks[-1].instruction == "slide the window closed"


def test_an_unknown_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="'long'; Meta-World has the horizon protocols short and metaworld"):
        catalog.tasks("long")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("simplevla.suites.metaworld.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(UserError, match=r"pip install 'simplevla\[metaworld\]'") as caught:
        make_suite(SuiteConfig(name="metaworld"))
    assert "\n" not in str(caught.value)


def test_textures_are_averaged() -> None:
    """A checkerboard of single pixels becomes its mean everywhere; texture 1 is small already and stays."""
    size = 4 * TEXTURE_SIZE
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><asset>
        <texture name="large" type="2d" builtin="flat" rgb1="0 0 0" width="{size}" height="{size}"/>
        <texture name="small" type="2d" builtin="flat" rgb1="1 0 0" width="64" height="64"/>
        </asset></mujoco>"""
    )
    board = np.indices((size, size)).sum(axis=0) % 2 * 200
    model.tex_data[: size * size * 3] = np.repeat(board[..., None], 3, axis=2).ravel()
    shrink_textures(model)
    assert model.tex_width.tolist() == model.tex_height.tolist() == [TEXTURE_SIZE, 64]
    assert (model.tex_data[: TEXTURE_SIZE * TEXTURE_SIZE * 3] == 100).all()
    small = model.tex_data[model.tex_adr[1] :].reshape(64, 64, 3)
    assert (small == [255, 0, 0]).all()


def test_a_decimated_sphere_is_still_the_sphere() -> None:
    pytest.importorskip("fast_simplification", reason="needs the extra 'metaworld' or 'libero'")
    model = mujoco.MjModel.from_xml_string(_sphere_xml())
    before, box = model.mesh_facenum[0], model.mesh_vert[model.mesh_vertadr[1] :].copy()
    assert before > 2 * MAX_FACES
    simplify_meshes(model)
    faces = model.mesh_face[: model.mesh_facenum[0]]
    assert 0.8 * MAX_FACES < len(faces) < 1.2 * MAX_FACES
    assert faces.max() < model.mesh_vertnum[0] == model.mesh_normalnum[0]
    points = model.mesh_vert[: model.mesh_vertnum[0]]
    radius = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(radius, 1, atol=0.03)
    # A sphere's normals point along its radii, outwards.
    cosine = (model.mesh_normal[: len(points)] * points / radius[:, None]).sum(1)
    assert cosine.min() > 0.97
    np.testing.assert_array_equal(model.mesh_vert[model.mesh_vertadr[1] :], box)


def _sphere_xml() -> str:
    rings, sectors = 40, 40
    theta = np.linspace(0, np.pi, rings + 1)[1:-1]
    phi = np.arange(sectors) * 2 * np.pi / sectors
    body = np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), np.ones(sectors)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    points = np.vstack([body, [[0, 0, 1], [0, 0, -1]]])
    numbers = " ".join(f"{x:.6f}" for x in points.ravel())
    return f"""<mujoco><asset><mesh name="ball" vertex="{numbers}"/><mesh name="box" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>
        <worldbody><geom type="mesh" mesh="ball"/><geom type="mesh" mesh="box"/></worldbody></mujoco>"""
