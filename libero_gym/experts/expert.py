"""Scripted experts: skills that read the simulator's state and the goal, and act by the same actions as any policy.

A skill is a generator of actions. `Expert` achieves one unmet predicate of the goal, looks again, and goes on until all
hold and the hand is empty. Grasps are planned from collision boxes; there is no table of grasps per object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from libero_gym.experts.arm import OPEN, Actions, Arm
from libero_gym.experts.carrying import Carrying, moved_body
from libero_gym.experts.joints import DRAWER_USABLE, Joints
from libero_gym.simulation import goals
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator

MAX_ATTEMPTS = 16  # skills that an expert begins before it gives up


@dataclass(frozen=True)
class Outcome:
    """The result of an expert's episode.

    Attributes:
        success: Whether the goal held at the end of some control step within the limit.
        steps: Control steps until the goal held, or until the expert gave up.
        rests: Whether the goal still held after the script had ended, with the hand open and away.
        cause: The skill that ran when steps or attempts ran out; empty on success.
    """

    success: bool
    steps: int
    rests: bool
    cause: str


class Expert:
    """Solves a task by script from the simulator's current state.

    Args:
        simulator: The simulator to read. The caller steps it with each action before it asks for the next one.
        noise: Standard deviation of Gaussian noise on the six motion dimensions, in units of action.
        seed: Seed of the noise. Equal seeds give equal actions.
    """

    def __init__(self, simulator: Simulator, noise: float = 0.0, seed: int = 0) -> None:
        self.simulator = simulator
        self.noise = noise
        self.seed = seed
        self.reset()

    def reset(self, simulator: Simulator | None = None) -> None:
        """Begin another episode. Call it after the simulator's own reset and settling.

        Args:
            simulator: The simulator to read from now on; None for the same as before. An environment takes another one
                whenever its task or its fixtures change, so after ``env.reset()`` it is ``env.simulator``.
        """
        if simulator is not None:
            self.simulator = simulator
        self.done = False
        self._rng = np.random.default_rng(self.seed)
        self._arm = Arm(self.simulator)
        self._actions = self._solve()

    @property
    def phase(self) -> str:
        """The running skill and its object, in words."""
        return self._arm.phase

    def act(self) -> np.ndarray:
        """The next action, float64 (7,) in [-1, 1]; after the end (`done`) it holds still with an open hand."""
        action = next(self._actions, None)
        if action is None:
            self.done = True
            return SETTLE_ACTION.copy()
        if self.noise:
            action[:6] += self._rng.normal(0.0, self.noise, 6)
        return np.clip(action, -1.0, 1.0)

    def _solve(self) -> Actions:
        joints = Joints(self._arm)
        carrying = Carrying(self._arm, joints)
        for _ in range(MAX_ATTEMPTS):
            held = self.simulator.predicates()
            unmet = [p for p, holds in zip(self.simulator.compiled.goal, held, strict=True) if not holds]
            if unmet:
                yield from _achieve(min(unmet, key=_rank), joints, carrying)
                continue
            yield from self._arm.stay(OPEN, 5)
            if all(self.simulator.predicates()):
                return


def _achieve(predicate: goals.Predicate, joints: Joints, carrying: Carrying) -> Actions:
    if isinstance(predicate, goals.JointThreshold):
        if predicate.joints:  # else it never holds, whatever is done
            yield from joints.achieve(predicate)
        return
    if isinstance(predicate, (goals.Up, goals.SiteUp)):  # no task of the suites asks for it
        return
    drawer = joints.drawer_of(predicate)
    if drawer is not None and joints.opened(drawer) < DRAWER_USABLE:
        yield from carrying.make_room(moved_body(predicate), drawer)
        yield from joints.open_drawer(drawer)
    else:
        yield from carrying.achieve(predicate)


def _rank(predicate: goals.Predicate) -> int:
    """The order of achievement: things are opened and turned on first, closed last."""
    if isinstance(predicate, goals.JointThreshold):
        return 3 if predicate.every else 0
    return 2 if isinstance(predicate, goals.InSite) else 1


def run_expert(simulator: Simulator, state: np.ndarray, max_steps: int, settle_steps: int = 10) -> Outcome:
    """Run one episode as the evaluation protocol does, and go on until the object is released.

    Args:
        simulator: The task's simulator.
        state: An official initial state.
        max_steps: Control steps after settling within which the goal has to hold once.
        settle_steps: Control steps with an open gripper before the expert begins.
    """
    simulator.reset(state)
    simulator.settle(settle_steps)
    expert = Expert(simulator)
    solved_at, cause = 0, ""
    for step in range(1, max_steps + 60):
        action = expert.act()
        if expert.done:
            break
        simulator.step(action)
        if simulator.success and not solved_at:
            solved_at = step
        if step >= max_steps and not solved_at:
            break
    success = 0 < solved_at <= max_steps
    if not success:
        cause = expert.phase
    return Outcome(success, solved_at or step, expert.done and simulator.success, cause)
