"""Repairs models such that a newer MuJoCo simulates and draws LIBERO as 3.3.2 does. Under 3.3.2 nothing is done."""

from __future__ import annotations

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence import box_contacts
from libero_gym.equivalence.versions import traits

_TRAITS = traits(mujoco.__version__)
# Of the constraint solver, where it stops too early at the default of 1e-8. It still converges in a few iterations, to
# the same forces with islands as without.
TOLERANCE = 1e-15

REVISION = 2 if _TRAITS.islands and not _TRAITS.early_exits else 1
"""Of what `repair_physics` writes into models of the installed version; the cache tells by it who has which."""


def repair_physics(model: mujoco.MjModel) -> None:
    """Let a model's contacts and forces be those of 3.3.2, in place.

    Depths are those of `box_contacts`, convex shapes meet in one point, and the solver goes on as long as it did: for
    all bodies together, or to the end.

    It is for models of LIBERO's scenes, and needs to be done once for a model: copies and files keep it.

    Raises:
        UnsupportedMujocoError: If the installed MuJoCo cannot be repaired.
    """
    if _TRAITS.multiccd:
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MULTICCD)
    if _TRAITS.early_exits:
        model.opt.tolerance = TOLERANCE
    elif _TRAITS.islands:
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    if _TRAITS.whole_depths:
        box_contacts.mark(model)
        box_contacts.install()


def repair_textures(model: mujoco.MjModel) -> None:
    """Let a model's textures be drawn as 3.3.2 does, in place; before a GL context is made of it."""
    if _TRAITS.colour_spaces:
        model.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR


def enable() -> None:
    """Let this process simulate repaired models that came from another one."""
    if _TRAITS.whole_depths:
        box_contacts.install()
