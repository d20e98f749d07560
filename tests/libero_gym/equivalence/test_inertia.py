"""The inertia of the arm is found where the installed MuJoCo keeps it."""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.inertia import inertia_addresses, inertia_values
from libero_gym.equivalence.versions import traits

# A chain of three hinges, the last two of which branch, and a box of its own.
_TREE = """
<mujoco>
  <worldbody>
    <body><freejoint/><geom size="0.1"/></body>
    <body pos="1 0 0"><joint axis="0 1 0"/><geom size="0.1" pos="0.2 0 0"/>
      <body pos="0.3 0 0"><joint axis="0 1 0"/><geom size="0.1" pos="0.2 0 0"/></body>
      <body pos="0 0.3 0"><joint axis="1 0 0"/><geom size="0.1" pos="0 0.2 0"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def test_addresses_give_the_block_of_the_full_matrix_and_follow_the_data() -> None:
    model = mujoco.MjModel.from_xml_string(_TREE)
    data = mujoco.MjData(model)
    dofs = np.array([8, 6, 7])
    values, addresses = inertia_values(data), inertia_addresses(model, dofs)
    for angle in (0.3, -0.9):
        data.qpos[-3:] = angle, 2 * angle, 0.1
        mujoco.mj_forward(model, data)
        full = np.empty((model.nv, model.nv))
        if traits(mujoco.__version__).full_inertia_from_data:
            mujoco.mj_fullM(model, data, full)
        else:
            mujoco.mj_fullM(model, full, data.qM)
        block = np.where(addresses >= 0, values[addresses], 0.0)
        np.testing.assert_array_equal(block, full[np.ix_(dofs, dofs)])
        assert block[1, 2] != 0.0
        assert addresses[0, 2] == -1  # on another branch
