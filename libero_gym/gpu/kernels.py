"""Warp kernels that LIBERO's physics needs around MuJoCo Warp's own stages, and those that move rows of worlds."""

from __future__ import annotations

from typing import Any

import mujoco
import warp as wp

wp.set_module_options({"enable_backward": False})

_BOX = wp.constant(int(mujoco.mjtGeom.mjGEOM_BOX))
# A contact's normal counts as a box's axis within this cosine; single precision rounds a true axis to 2e-7.
_PARALLEL = wp.constant(1.0 - 1e-6)


@wp.func
def _is_axis(normal: wp.vec3, frame: wp.mat33):
    along = wp.abs(wp.transpose(frame) * normal)
    return wp.max(along[0], wp.max(along[1], along[2])) > _PARALLEL


@wp.kernel
def halve_face_depth(
    n_contacts: wp.array[int],
    geom: wp.array[wp.vec2i],
    geom_type: wp.array[int],
    geom_xmat: wp.array2d[wp.mat33],
    world: wp.array[int],
    frame: wp.array[wp.mat33],
    dist: wp.array[float],
):
    """Halve the depth of contacts of two boxes at a face; until 3.4.0 MuJoCo gave half of it, and LIBERO rests on that.

    MuJoCo's changelog 3.4.0, item 13. Contacts of two edges were always whole.
    """
    contact = wp.tid()
    if contact >= n_contacts[0]:
        return
    first = geom[contact][0]
    second = geom[contact][1]
    if first < 0 or second < 0 or geom_type[first] != _BOX or geom_type[second] != _BOX:
        return
    normal = wp.vec3(frame[contact][0, 0], frame[contact][0, 1], frame[contact][0, 2])
    frames = world[contact]
    if _is_axis(normal, geom_xmat[frames, first]) or _is_axis(normal, geom_xmat[frames, second]):
        dist[contact] = 0.5 * dist[contact]


@wp.kernel
def place_static_geoms(
    geoms: wp.array[int],
    geom_body: wp.array[int],
    geom_pos: wp.array2d[wp.vec3],
    geom_quat: wp.array2d[wp.quat],
    xpos: wp.array2d[wp.vec3],
    xmat: wp.array2d[wp.mat33],
    geom_xpos: wp.array2d[wp.vec3],
    geom_xmat: wp.array2d[wp.mat33],
):
    """Move the geoms of bodies that are fixed to the world to where the world has these bodies.

    MuJoCo Warp computes them once, in ``make_data``, from the model's own poses (``_geom_local_to_global`` in its
    smooth.py leaves them out), but each world has its own fixtures.
    """
    world, index = wp.tid()
    geom = geoms[index]
    body = geom_body[geom]
    turn = xmat[world, body]
    quat = geom_quat[world % geom_quat.shape[0], geom]  # wxyz, in the places of Warp's xyzw
    own = wp.quat_to_matrix(wp.quat(quat[1], quat[2], quat[3], quat[0]))
    geom_xpos[world, geom] = xpos[world, body] + turn * geom_pos[world % geom_pos.shape[0], geom]
    geom_xmat[world, geom] = turn * own


@wp.kernel
def note_sizes(
    n_contacts: wp.array[int],
    n_candidates: wp.array[int],
    n_constraints: wp.array[int],
    largest: wp.array[int],
):
    """Remember the most contacts, candidate pairs (of all worlds) and constraints (of one world) of any substep."""
    world = wp.tid()
    wp.atomic_max(largest, 2, n_constraints[world])
    if world == 0:
        wp.atomic_max(largest, 0, n_contacts[0])
        wp.atomic_max(largest, 1, n_candidates[0])


def words(array: Any) -> Any:
    """An array (n, width) as 32-bit words, (n, width or 2 width), over the same memory.

    The kernels that move rows take words, whatever the rows hold. Generic kernels will not do: graphs that Warp 1.19
    captures on the CPU replay one type's kernel for another's array.
    """
    per_number = wp.types.type_size_in_bytes(array.dtype) // wp.types.type_size_in_bytes(wp.uint32)
    shape = array.shape[0], array.shape[1] * per_number
    view = wp.array(ptr=array.ptr, dtype=wp.uint32, shape=shape, device=array.device, copy=False)
    view.owner = array  # keeps the memory
    return view


@wp.kernel
def put_back(active: wp.array[int], kept: wp.array2d[wp.uint32], out: wp.array2d[wp.uint32]):
    """Give the rows of worlds that are not active the values that were kept of them."""
    world, column = wp.tid()
    if active[world] == 0:
        out[world, column] = kept[world, column]


@wp.kernel
def gather(active: wp.array[int], rows: wp.array[int], table: wp.array2d[wp.uint32], out: wp.array2d[wp.uint32]):
    """Give each active world the row of a table that ``rows`` names."""
    world, column = wp.tid()
    if active[world] != 0:
        out[world, column] = table[rows[world], column]


@wp.kernel
def scatter(active: wp.array[int], rows: wp.array[int], source: wp.array2d[wp.uint32], table: wp.array2d[wp.uint32]):
    """Write each active world's row into the row of a table that ``rows`` names."""
    world, column = wp.tid()
    if active[world] != 0:
        table[rows[world], column] = source[world, column]


@wp.kernel
def place_bodies(
    active: wp.array[int],
    bodies: wp.array[int],
    pose: wp.array2d[float],
    body_pos: wp.array2d[wp.vec3],
    body_quat: wp.array2d[wp.quat],
):
    """Put bodies of active worlds at their poses, float32 (n, 7 per body): position, then quaternion (wxyz)."""
    world, index = wp.tid()
    if active[world] != 0:
        k = 7 * index
        body_pos[world, bodies[index]] = wp.vec3(pose[world, k], pose[world, k + 1], pose[world, k + 2])
        body_quat[world, bodies[index]] = wp.quat(
            pose[world, k + 3], pose[world, k + 4], pose[world, k + 5], pose[world, k + 6]
        )
