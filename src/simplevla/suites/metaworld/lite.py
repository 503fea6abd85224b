"""Visual mode `lite`: fewer faces and smaller textures in a copy of a model that is only uploaded to a renderer.

A renderer draws the physics' own model and takes from the copy what was uploaded, by mesh and texture number. So the
physics is stock bit for bit, and nothing is converted on disk.
"""

import mujoco
import numpy as np

MAX_FACES = 500
"""About so many faces remain of each untextured mesh; the arm's have up to 13,500. The few textured ones are small."""
TEXTURE_SIZE = 128


def simplify_meshes(model: mujoco.MjModel) -> None:
    """Decimate in the model's own mesh arrays, which only get shorter."""
    import fast_simplification

    for mesh in range(model.nmesh):
        faces = model.mesh_facenum[mesh]
        if faces <= MAX_FACES or model.mesh_texcoordadr[mesh] >= 0:
            continue
        first_point, first_face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        points, triangles = fast_simplification.simplify(
            model.mesh_vert[first_point : first_point + model.mesh_vertnum[mesh]],
            model.mesh_face[first_face : first_face + faces],
            target_reduction=1 - MAX_FACES / faces,
        )
        corners = points[triangles]
        normals = np.zeros_like(points)
        for corner in range(3):
            np.add.at(
                normals, triangles[:, corner], np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            )
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        model.mesh_vertnum[mesh] = model.mesh_normalnum[mesh] = len(points)
        model.mesh_facenum[mesh] = len(triangles)
        model.mesh_vert[first_point : first_point + len(points)] = points
        model.mesh_face[first_face : first_face + len(triangles)] = triangles
        first_normal = model.mesh_normaladr[mesh]
        model.mesh_normal[first_normal : first_normal + len(points)] = normals
        model.mesh_facenormal[first_face : first_face + len(triangles)] = triangles
        # Its convex hull would name points that are gone.
        model.mesh_graphadr[mesh] = -1


def shrink_textures(model: mujoco.MjModel) -> None:
    """Averages square textures down to `TEXTURE_SIZE` where that is a whole fraction; stock ones take 25 MB a task."""
    for texture in range(model.ntex):
        height, width = model.tex_height[texture], model.tex_width[texture]
        if height != width or width <= TEXTURE_SIZE or width % TEXTURE_SIZE:
            continue
        channels, start = model.tex_nchannel[texture], model.tex_adr[texture]
        pixels = model.tex_data[start : start + height * width * channels]
        factor = width // TEXTURE_SIZE
        small = pixels.reshape(TEXTURE_SIZE, factor, TEXTURE_SIZE, factor, channels).mean(axis=(1, 3)).round()
        model.tex_data[start : start + small.size] = small.astype(np.uint8).ravel()
        model.tex_height[texture] = model.tex_width[texture] = TEXTURE_SIZE
