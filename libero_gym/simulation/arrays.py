"""What predicates, rewards and features read of a simulation: MuJoCo's arrays with a leading axis of environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco

NO_GEOM = -1
"""Fills the rows of `StateArrays.contacts` that hold no contact."""


class StateArrays(NamedTuple):
    """The state of n simulations of one model, float64 unless stated otherwise.

    The fields have MuJoCo's names, and are indexed by the model's ids behind the first axis. One environment is a batch
    of one (`of`); a back end that simulates many at once hands its arrays over as they are.

    Attributes:
        qpos: Joint positions in m or rad, (n, nq).
        qvel: Joint velocities in m/s or rad/s, (n, nv).
        xpos: Positions of bodies in m, (n, nbody, 3).
        xmat: Orientations of bodies, (n, nbody, 3, 3).
        xipos: Centres of mass of bodies in m, (n, nbody, 3).
        site_xpos: Positions of sites in m, (n, nsite, 3).
        site_xmat: Orientations of sites, (n, nsite, 3, 3).
        contacts: Ids of the two geoms of each contact, int (n, m, 2); rows beyond an environment's contacts are
            `NO_GEOM`.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    xpos: np.ndarray
    xmat: np.ndarray
    xipos: np.ndarray
    site_xpos: np.ndarray
    site_xmat: np.ndarray
    contacts: np.ndarray

    @classmethod
    def of(cls, data: mujoco.MjData) -> StateArrays:
        """A batch of one. Its arrays are views, which follow the data; its contacts are those of now."""
        return cls(
            qpos=data.qpos[None],
            qvel=data.qvel[None],
            xpos=data.xpos[None],
            xmat=data.xmat.reshape(1, -1, 3, 3),
            xipos=data.xipos[None],
            site_xpos=data.site_xpos[None],
            site_xmat=data.site_xmat.reshape(1, -1, 3, 3),
            contacts=contacts_of(data),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[StateArrays]) -> StateArrays:
        """The environments of all parts in one batch, as copies."""
        most = max(part.contacts.shape[1] for part in parts)
        padded = [_pad(part.contacts, most) for part in parts]
        fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in cls._fields[:-1]}
        return cls(**fields, contacts=np.concatenate(padded))


def contacts_of(data: mujoco.MjData) -> np.ndarray:
    """The contacts of one simulation now, int32 (1, m, 2); see `StateArrays`."""
    pairs: np.ndarray = data.contact.geom[None]
    return pairs


def _pad(contacts: np.ndarray, most: int) -> np.ndarray:
    return np.pad(contacts, ((0, 0), (0, most - contacts.shape[1]), (0, 0)), constant_values=NO_GEOM)
