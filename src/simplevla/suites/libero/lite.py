"""Visual mode `lite`: the same physics, pictures at a tenth of the cost. Pixels differ from stock: results say so.

Meshes that only visual shapes use are decimated, textures shrink to 128 pixels, meshes that nothing uses are dropped;
multisampling, shadows and reflections are off. Collision shapes and inertia are untouched: LIBERO takes both from its
collision group alone.
"""

import functools
import hashlib
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import mujoco
import numpy as np

from simplevla.storage import write_atomically

MAX_FACES = 500
"""Faces of a decimated mesh; stock meshes have up to 66,000."""
TEXTURE_SIZE = 128
FORMAT = "2"
"""Part of every cache key: raised when the conversion changes."""


def cache_folder() -> Path:
    """Folder of converted assets: SIMPLEVLA_CACHE, else the XDG cache folder."""
    chosen = os.environ.get("SIMPLEVLA_CACHE")
    if chosen:
        return Path(chosen) / "libero_lite"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "simplevla" / "libero_lite"


def simplify_xml(xml: str) -> str:
    """A scene's MuJoCo XML with lite meshes and textures; everything that touches physics stays as it was."""
    root = ET.fromstring(xml)
    assets = root.find("asset")
    assert assets is not None, "a robosuite scene has assets"
    geoms = [geom for geom in root.iter("geom") if geom.get("mesh")]
    used = {geom.get("mesh") for geom in geoms}
    colliding = {geom.get("mesh") for geom in geoms if (geom.get("contype"), geom.get("conaffinity")) != ("0", "0")}
    for mesh in assets.findall("mesh"):
        name = mesh.get("name")
        if name not in used:
            assets.remove(mesh)
        elif name not in colliding:
            mesh.set("file", str(_lite_mesh(Path(mesh.attrib["file"]), mesh.attrib.pop("scale", "1 1 1"))))
    for material in assets.findall("material"):
        material.set("reflectance", "0")
    for texture in assets.findall("texture"):
        if texture.get("file"):
            texture.set("file", str(_lite_texture(Path(texture.attrib["file"]))))
        for side in ("width", "height"):
            if texture.get(side):
                texture.set(side, str(min(int(texture.attrib[side]), TEXTURE_SIZE)))
    visual = root.find("visual")
    if visual is None:
        visual = ET.SubElement(root, "visual")
    quality = visual.find("quality")
    if quality is None:
        quality = ET.SubElement(visual, "quality")
    quality.set("offsamples", "0")
    quality.set("shadowsize", "0")
    return ET.tostring(root, encoding="unicode")


def decimate(
    points: np.ndarray, faces: np.ndarray, uv: np.ndarray | None, max_faces: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Fewer faces, same shape and same texture.

    Args:
        points: float [V, 3]; a point may occur several times, with different texture coordinates.
        faces: int [F, 3], indices into `points`.
        uv: float [V, 2], or None for a mesh without texture.
        max_faces: about this many faces remain.

    Returns:
        points [V', 3], faces [F', 3], uv [V', 2] or None. A corner takes, among the texture coordinates that occur at
        the original point nearest to it, those nearest to the texture coordinates of the original face that is most
        alike in place and direction, so that no face reaches across a seam of the texture.
    """
    import fast_simplification
    from scipy.spatial import cKDTree

    if len(faces) <= max_faces:
        return points, faces, uv
    merged, which = np.unique(points, axis=0, return_inverse=True)
    solid = which.reshape(-1)[faces]
    solid = solid[(solid[:, 0] != solid[:, 1]) & (solid[:, 1] != solid[:, 2]) & (solid[:, 2] != solid[:, 0])]
    new_points, new_faces = fast_simplification.simplify(
        merged.astype(np.float32), solid.astype(np.int32), target_reduction=1 - max_faces / len(faces)
    )
    corners = new_points[new_faces]
    flat = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) == 0
    new_faces, corners = new_faces[~flat], corners[~flat]
    if uv is None:
        return new_points, new_faces, None
    size = float(np.ptp(merged, axis=0).max())
    _, near_face = cKDTree(_place_and_normal(points[faces], size)).query(_place_and_normal(corners, size))
    face_uv = uv[faces[near_face]].mean(1)
    _, near_point = cKDTree(merged).query(corners.reshape(-1, 3))
    order = np.argsort(which.reshape(-1), kind="stable")
    starts = np.searchsorted(which.reshape(-1)[order], np.arange(len(merged) + 1))
    corner_uv = np.empty((len(near_point), 2))
    for corner, point in enumerate(near_point):
        choices = uv[order[starts[point] : starts[point + 1]]]
        corner_uv[corner] = choices[np.abs(choices - face_uv[corner // 3]).sum(1).argmin()]
    rows, index = np.unique(np.hstack([corners.reshape(-1, 3), corner_uv]), axis=0, return_inverse=True)
    return rows[:, :3], index.reshape(-1, 3), rows[:, 3:]


def _place_and_normal(corners: np.ndarray, size: float) -> np.ndarray:
    """[F, 6] of triangles [F, 3, 3]: centres relative to the mesh's `size`, and normals counted as a fifth of it."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.hstack([corners.mean(1) / size, 0.2 * normals / np.maximum(lengths, 1e-30)])


@functools.cache
def _lite_mesh(source: Path, scale: str) -> Path:
    """The decimated, scaled mesh as a file in MuJoCo's own format."""
    target = cache_folder() / f"{_key(source, scale, MAX_FACES)}.msh"
    if not target.exists():
        points, faces, uv = _read_mesh(source, scale)
        points, faces, uv = decimate(points, faces, uv, MAX_FACES)
        header = np.array([len(points), 0, 0 if uv is None else len(uv), len(faces)], np.int32)
        arrays = [header, points.astype(np.float32)]
        if uv is not None:
            arrays.append(uv.astype(np.float32))
        arrays.append(faces.astype(np.int32))
        write_atomically(target, b"".join(array.tobytes() for array in arrays))
    return target


@functools.cache
def _lite_texture(source: Path) -> Path:
    """The texture at `TEXTURE_SIZE`, as PNG."""
    from io import BytesIO

    from PIL import Image

    target = cache_folder() / f"{_key(source, TEXTURE_SIZE)}.png"
    if not target.exists():
        with Image.open(source) as image:
            small = image.convert("RGB").resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BOX)
        buffer = BytesIO()
        small.save(buffer, "PNG")
        write_atomically(target, buffer.getvalue())
    return target


def _read_mesh(source: Path, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points, faces and texture coordinates of any mesh file that MuJoCo reads, in the file's own frame, scaled."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><compiler inertiagrouprange='0 0'/>"
        f"<asset><mesh name='mesh' file='{source}' scale='{scale}'/></asset>"
        "<worldbody><geom type='mesh' mesh='mesh' contype='0' conaffinity='0' group='1'/></worldbody></mujoco>"
    )
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    points = model.mesh_vert.astype(np.float64) @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    faces = np.asarray(model.mesh_face)
    if len(model.mesh_texcoord) == 0:
        return points, faces, None
    corners = np.stack([faces.reshape(-1), np.asarray(model.mesh_facetexcoord).reshape(-1)], axis=1)
    pairs, index = np.unique(corners, axis=0, return_inverse=True)
    return points[pairs[:, 0]], index.reshape(-1, 3), model.mesh_texcoord[pairs[:, 1]].astype(np.float64)


def _key(source: Path, *settings: object) -> str:
    """Name of a converted file: changes with the source and with everything that shapes the conversion."""
    stat = source.stat()
    text = "|".join(map(str, (FORMAT, mujoco.__version__, source.resolve(), stat.st_size, stat.st_mtime_ns, *settings)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
