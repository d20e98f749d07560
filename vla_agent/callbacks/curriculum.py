"""Which tasks to practise: the vector environment's task weights follow the running success of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast, get_args
from weakref import WeakSet

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import choice, flag, real_number
from vla_agent.callbacks.success import SuccessCallback

Mode = Literal["uniform", "hardest", "frontier"]

# Success rate of a task that no episode has tried yet: neither hard nor easy.
UNKNOWN_SUCCESS = 0.5
_RULE = {"mode", "tau"}  # what the states of curricula alone have
_weighed: WeakSet[VecEnv] = WeakSet()  # environments whose weights are a curriculum's


class HasTasks(Protocol):
    """What a curriculum asks of environments, besides the attribute ``task_ids``; `VLAVecEnv` has it."""

    def set_task_weights(self, weights: Sequence[float]) -> None:
        """Sets the probability of drawing each task, in the order of ``task_ids``."""


def task_weights(success_rates: np.ndarray, mode: Mode, tau: float) -> np.ndarray:
    """Probability of drawing each task, (n_tasks,).

    Where s is the success rate of a task, its probability is proportional to

    * "uniform": 1;
    * "hardest": exp((0.5 - s) / tau), the curriculum of VLA-RL (arXiv 2505.18719);
    * "frontier": exp(-|0.5 - s| / tau), highest for tasks that succeed half the time, whose returns differ most.

    Args:
        success_rates: Success rate s of each task in [0, 1], (n_tasks,).
        mode: Name of a rule above.
        tau: Temperature; a smaller one makes the probabilities more unequal.
    """
    distance = 0.5 - np.asarray(success_rates, dtype=np.float64)
    exponents = {"uniform": 0.0 * distance, "hardest": distance, "frontier": -np.abs(distance)}[mode] / tau
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


class Curriculum(SuccessCallback):
    """Draws tasks by their running success, see `task_weights`; the weights change after each rollout.

    It logs ``curriculum/weight_task_<id>``, and what `SuccessCallback` logs. A run that goes on keeps its weights; a
    training that begins anew draws all tasks alike first.

    Args:
        mode: "uniform", "hardest" or "frontier".
        tau: Temperature of the weights.
        window: Number of a task's last episodes that its rate is the mean over. A task not yet tried counts as 0.5.
        allow_changes: Whether a run that was made with another mode, ``tau`` or ``window`` may go on with these.

    Raises:
        ValueError: If the mode is unknown or ``tau`` is not positive; in `learn`, if the environment cannot weigh
            tasks, or a run goes on that was made otherwise.
    """

    def __init__(
        self,
        mode: Mode = "hardest",
        tau: float = 0.5,
        window: int = 50,
        verbose: int = 0,
        *,
        allow_changes: bool = False,
    ) -> None:
        super().__init__(window, verbose)
        self.mode = cast(Mode, choice("curriculum mode", mode, get_args(Mode)))
        self.tau = real_number("tau", tau, above=0)
        self.allow_changes = flag("allow_changes", allow_changes)
        self.task_ids: Sequence[int] = ()

    @property
    def weights(self) -> Mapping[int, float]:
        """Probability of drawing each task now, by task id."""
        rates = self.success_rates
        success = np.array([rates.get(task_id, UNKNOWN_SUCCESS) for task_id in self.task_ids])
        values = task_weights(success, self.mode, self.tau)
        return dict(zip(self.task_ids, values.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The history and the rule, as JSON can hold them."""
        return super().state_dict() | {"mode": self.mode, "tau": self.tau, "window": self.window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; older ones tell no rule, or not all of it.

        Raises:
            ValueError: If the rule is another one.
        """
        rule: dict[str, Any] = {"mode": self.mode, "tau": self.tau, "window": self.window}
        made, now = _rule(**{name: state.get(name, value) for name, value in rule.items()}), _rule(**rule)
        if made != now and not self.allow_changes:
            raise ValueError(
                f"The run was made with the curriculum {made}, not {now}. Give what it was made with, or "
                "allow_changes=True (--allow-changes) to go on as asked; it is then another run than without the stop."
            )
        super().load_state_dict(state)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        env = self.training_env
        if not hasattr(env, "set_task_weights"):
            raise ValueError(f"A curriculum needs environments with set_task_weights, got {type(env).__name__}.")
        self.task_ids = env.get_attr("task_ids")[0]
        self._apply()

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        self._apply()
        for task_id, weight in self.weights.items():
            self.logger.record(f"curriculum/weight_task_{task_id}", weight)

    def _apply(self) -> None:
        _weighed.add(self.training_env.unwrapped)
        cast(HasTasks, self.training_env).set_task_weights(list(self.weights.values()))


def draw_alike_again(env: VecEnv, states: Mapping[str, Any]) -> None:
    """Gives all tasks the same weight if a curriculum weighed them before, for a training that begins anew.

    Weights that were set otherwise stay.

    Args:
        env: Environments of the training, before their first reset.
        states: States of callbacks of the run that was loaded, by name, whose curriculum may have weighed them.
    """
    loaded = any(isinstance(state, dict) and state.keys() >= _RULE for state in states.values())
    if (loaded or env.unwrapped in _weighed) and hasattr(env, "set_task_weights"):
        _weighed.discard(env.unwrapped)
        cast(HasTasks, env).set_task_weights([1.0] * len(env.get_attr("task_ids")[0]))


def _rule(mode: str, tau: float, window: int) -> str:
    """A rule in words; a uniform one has neither temperature nor window."""
    return repr(mode) if mode == "uniform" else f"{mode!r} with tau={tau:g} and window={window}"
