"""Where entries of the joint-space inertia stand in the array that MuJoCo keeps it in."""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.versions import traits

_TRAITS = traits(mujoco.__version__)


def inertia_values(data: mujoco.MjData) -> np.ndarray:
    """MuJoCo's own array of the inertia's nonzero entries, a view that follows the data."""
    values: np.ndarray = data.M if _TRAITS.sparse_rows else data.qM
    return values


def inertia_addresses(model: mujoco.MjModel, dofs: np.ndarray) -> np.ndarray:
    """Addresses in `inertia_values` of the block of k degrees of freedom.

    Args:
        model: The model.
        dofs: The degrees of freedom, int (k,).

    Returns:
        int64 (k, k), symmetric; -1 where the entry is zero because neither moves the other.
    """
    row_of = _compressed_row if _TRAITS.sparse_rows else _row_of_ancestors
    rows = [row_of(model, int(dof)) for dof in dofs]
    addresses = np.full((len(dofs), len(dofs)), -1, dtype=np.int64)
    for a, row in enumerate(rows):
        for b, dof in enumerate(dofs):
            if int(dof) in row:
                addresses[a, b] = addresses[b, a] = row[int(dof)]
    return addresses


def _compressed_row(model: mujoco.MjModel, dof: int) -> dict[int, int]:
    """Addresses by column of a row of ``data.M``, the lower triangle."""
    start, count = int(model.M_rowadr[dof]), int(model.M_rownnz[dof])
    return {int(model.M_colind[address]): address for address in range(start, start + count)}


def _row_of_ancestors(model: mujoco.MjModel, dof: int) -> dict[int, int]:
    """Addresses by column of a row of ``data.qM``: the degree of freedom, then its ancestors up to the root."""
    row, address = {}, int(model.dof_Madr[dof])
    while dof >= 0:
        row[dof] = address
        dof, address = int(model.dof_parentid[dof]), address + 1
    return row
