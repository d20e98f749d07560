"""Contacts of boxes as deep as before MuJoCo 3.4.0, which decides where objects come to rest.

All of LIBERO's objects collide as boxes. Up to 3.3.7, MuJoCo reported half the depth of a contact at a face of a box;
from 3.4.0 on it reports the whole (changelog of 3.4.0, item 13), so objects rest elsewhere: the bowl slides off the
ramekin. Contacts of two edges had the whole depth in all versions.

MuJoCo calls collision functions through a table that programs may write to, ``mjCOLLISIONFUNC``. `install` puts a
function there that calls MuJoCo's own and then halves those depths, in models that `mark` has marked and in no others:
what else the process simulates stays as it is.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.numba_cache import callback, compiled
from libero_gym.equivalence.versions import EXACT, UnsupportedMujocoError, traits

# A torsional friction that counts only if contact parameters are overridden (``mjENBL_OVERRIDE``), next to its default.
MARK = 1e-4 + 2.0**-40
_MARKED = 4  # index in ``opt.o_friction``
# Doubles of ``mjPreContact``; where the distance and the normal stand in it and in ``mjContact``.
_BRIEF_WORDS = 10
_DIST, _NORMAL = 0, 4
# rad: a normal is a box's axis if they are this near. A face's normal is so within rounding; an edge of a finger that
# grasps upright crosses an edge of a handle within 1e-6 of that.
_PARALLEL = 1e-10
# Doubles of ``mjData`` among which the pointer to ``geom_xmat`` is looked for; it stands at about 20,000.
_MOST_WORDS = 60_000
_ORIGINAL = "libero_gym_mujoco_box_box"
_SIGNATURE = types.int32(types.uintp, types.uintp, types.uintp, types.int32, types.int32, types.float64)
_original: Any = types.ExternalFunction(_ORIGINAL, _SIGNATURE)
_N_TYPES = int(mujoco.mjtGeom.mjNGEOMTYPES)
_ENTRY = int(mujoco.mjtGeom.mjGEOM_BOX) * (_N_TYPES + 1)

# A box lies on another, both tilted: four contacts at a face, 10 mm deep.
_SCENE = """
<mujoco>
  <worldbody>
    <frame euler="40 30 20">
      <geom type="box" size="0.1 0.1 0.1"/>
      <body pos="0.01 0.02 0.19"><freejoint/><geom type="box" size="0.05 0.05 0.1"/></body>
    </frame>
  </worldbody>
</mujoco>
"""

_lock = threading.RLock()
_hook: Any = None  # kept alive: MuJoCo holds its address
_original_address = 0


def mark(model: mujoco.MjModel) -> None:
    """Let `install` act on a model, in place. Copies, and files in MuJoCo's binary format, keep it."""
    model.opt.o_friction[_MARKED] = MARK


def is_marked(model: mujoco.MjModel) -> bool:
    """Whether `install` acts on a model."""
    return bool(model.opt.o_friction[_MARKED] == MARK)


def is_installed() -> bool:
    """Whether this process halves depths in marked models."""
    return _hook is not None and _table()[_ENTRY] == _hook.address


def install() -> None:
    """Halve depths in marked models from now on, in this process and its forks. Safe to call again.

    Raises:
        UnsupportedMujocoError: If the installed MuJoCo does not do as it should then, or is one that halves by itself.
    """
    global _hook, _original_address
    with _lock:
        if is_installed():
            return
        table = _table()
        if _hook is None:
            _original_address = int(table[_ENTRY])
            llvmlite.binding.add_symbol(_ORIGINAL, _original_address)
            _hook = _compile(*_places())
        elif table[_ENTRY] != _original_address:
            raise UnsupportedMujocoError(
                "Another library has put its own collision of boxes into MuJoCo (mjCOLLISIONFUNC); LIBERO's needs "
                "that place. Take a process of its own for one of them."
            )
        table[_ENTRY] = _hook.address
        problem = _problem()
        if problem is not None:
            table[_ENTRY] = _original_address
            raise UnsupportedMujocoError(
                f"MuJoCo {mujoco.__version__} cannot be repaired to simulate LIBERO: {problem}. "
                f"pip install mujoco=={EXACT}"
            )


def uninstall() -> None:
    """Put MuJoCo's own function back. The next reset of a simulator of this package, or a new one, installs ours again;
    until then its steps are MuJoCo's own.

    Raises:
        RuntimeError: If another library has put its function in the place of ours, and may call it.
    """
    with _lock:
        table = _table()
        if _hook is None or table[_ENTRY] == _original_address:
            return
        if table[_ENTRY] != _hook.address:
            raise RuntimeError("Another library's collision of boxes stands in MuJoCo's table; undo that one first.")
        table[_ENTRY] = _original_address


@functools.cache
def _table() -> Any:
    """MuJoCo's table of collision functions as addresses, by pairs of kinds of geoms."""
    (library,) = Path(mujoco.__file__).parent.glob("libmujoco*")
    start = ctypes.c_char.in_dll(ctypes.CDLL(str(library)), "mjCOLLISIONFUNC")
    return (ctypes.c_size_t * _N_TYPES**2).from_address(ctypes.addressof(start))


def _places() -> tuple[int, int, int]:
    """Where a model's mark and a data's ``geom_xmat`` stand, and the distance of two contacts, all in doubles."""
    model, data = _example()
    mark_at = (model.opt.o_friction.ctypes.data - model._address) // 8 + _MARKED
    wanted = data.geom_xmat.ctypes.data
    words = (ctypes.c_size_t * _MOST_WORDS).from_address(data._address)
    xmat_at = next((index for index, word in enumerate(words) if word == wanted), None)
    if xmat_at is None:
        raise UnsupportedMujocoError(
            f"MuJoCo {mujoco.__version__} keeps geom_xmat where it was not looked for. pip install mujoco=={EXACT}"
        )
    whole = data.contact.dist.strides[0] // 8
    return mark_at, xmat_at, _BRIEF_WORDS if traits(mujoco.__version__).brief_contacts else whole


def _example(marked: bool = False) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The example scene with its contacts."""
    model = mujoco.MjModel.from_xml_string(_SCENE)
    if marked:
        mark(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def _problem() -> str | None:
    """What the installed function does wrong in the example scene; None if it is right."""
    (_, whole), (_, half) = _example(), _example(marked=True)
    if len(whole.contact.dist) == 0 or not np.allclose(whole.contact.dist, -0.01, atol=1e-9):
        return f"a box that lies 10 mm deep in another has contacts of {np.array(whole.contact.dist) * 1e3} mm"
    same = np.array_equal(whole.contact.pos, half.contact.pos) and np.array_equal(
        whole.contact.frame, half.contact.frame
    )
    if not same or not np.allclose(half.contact.dist, -0.005, atol=1e-9):
        return f"contacts of 10 mm become {np.array(half.contact.dist) * 1e3} mm, where 5 mm are wanted"
    return None


@intrinsic
def _doubles(_: Any, address: Any) -> Any:
    """An address as a pointer to doubles."""
    pointer = types.CPointer(types.float64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.uintp), generate


@compiled
def _is_axis(x, y, z, axes, geom):
    """Whether a unit vector is parallel to an axis of a geom, whose axes are the columns of its matrix."""
    for axis in range(3):
        column = 9 * geom + axis
        a, b, c = axes[column], axes[column + 3], axes[column + 6]
        sine_squared = (y * c - z * b) ** 2 + (z * a - x * c) ** 2 + (x * b - y * a) ** 2
        if sine_squared < _PARALLEL**2:
            return True
    return False


def _compile(mark_at: int, xmat_at: int, stride: int) -> Any:
    """The function for MuJoCo's table, with the places of `_places`."""

    def collide(model, data, contacts, geom1, geom2, margin):
        count = _original(model, data, contacts, geom1, geom2, margin)
        if count > 0 and numba.carray(_doubles(model), mark_at + 1)[mark_at] == MARK:
            address = numba.carray(_doubles(data), xmat_at + 1).view(np.uintp)[xmat_at]
            axes = numba.carray(_doubles(address), 9 * (max(geom1, geom2) + 1))
            found = numba.carray(_doubles(contacts), count * stride)
            for start in range(0, count * stride, stride):
                x, y, z = found[start + _NORMAL], found[start + _NORMAL + 1], found[start + _NORMAL + 2]
                if _is_axis(x, y, z, axes, geom1) or _is_axis(x, y, z, axes, geom2):
                    found[start + _DIST] *= 0.5
        return count

    return callback(_SIGNATURE, collide)
