"""The moment of a run that a save holds, which is a whole one whenever the save comes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch as th


class Contents(NamedTuple):
    """Weights and optimizer, which an update changes."""

    weights: dict[str, th.Tensor]  # by parameter name
    optimizer_tensors: dict[str, th.Tensor]  # by "parameter|name"
    optimizer_groups: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Moment:
    """The run before a rollout.

    Attributes:
        state: Everything except weights and optimizer, see `saved_run.training_state`.
        contents: Weights and optimizer; None while the model's own are still those of this moment.
        missing: Why the weights of this moment are lost, as one sentence; None if they are not.
    """

    state: dict[str, Any]
    contents: Contents | None = None
    missing: str | None = None

    def before_update(self, live: Contents, fixed: Collection[str], max_bytes: int) -> Moment:
        """This moment with a copy of what the update is about to change, in the host's memory.

        Args:
            live: The model's own tensors, which are still those of this moment.
            fixed: Names of weights that no update changes; they are not copied.
            max_bytes: Largest copy to make; if it would be larger, `missing` says so instead.
        """
        changing = [tensor for name, tensor in live.weights.items() if name not in fixed]
        size = sum(tensor.nbytes for tensor in [*changing, *live.optimizer_tensors.values()])
        if size > max_bytes:
            return Moment(
                self.state,
                missing=(
                    "The run is in the middle of an update, and its weights and moments before it were not kept: they "
                    f"take {size / 2**30:.3g} GiB, and max_copy_bytes allows {max_bytes / 2**30:.3g} GiB."
                ),
            )
        weights = {name: tensor if name in fixed else _copy(tensor) for name, tensor in live.weights.items()}
        moments = {name: _copy(tensor) for name, tensor in live.optimizer_tensors.items()}
        return Moment(self.state, Contents(weights, moments, copy.deepcopy(live.optimizer_groups)))


class Moments:
    """Which moment a save holds while a run goes on.

    Attributes:
        boundary: The run before the rollout or update that is under way; None between an update and the next rollout.
        past: The boundary before the last update, until there is a new one.
    """

    def __init__(self) -> None:
        self.boundary: Moment | None = None
        self.past: Moment | None = None

    @property
    def is_live(self) -> bool:
        """Whether the boundary has no copy of its weights: an update has to make one before it changes them."""
        return self.boundary is not None and self.boundary.contents is None and self.boundary.missing is None

    def begin_rollout(self, state: Callable[[], dict[str, Any]]) -> None:
        """A rollout begins: from here on, a save holds the run as it is now.

        Args:
            state: Function that gives the state now, see `saved_run.training_state`.
        """
        # An error may come while the environments are asked for their state, or a signal may have ended them. Then the
        # moment before the last update, of which everything is known, goes on to count.
        self.boundary = past = self.past
        now = Moment(state())
        known = past is not None and past.contents is not None and past.state["environments"] is not None
        if not known or now.state["environments"] is not None:
            self.boundary = now
        self.past = None

    def begin_update(self, live: Contents, fixed: Collection[str], max_bytes: int) -> None:
        """An update begins: what it changes is copied; arguments as for `Moment.before_update`."""
        if self.boundary is not None and self.is_live:
            self.boundary = self.boundary.before_update(live, fixed, max_bytes)

    def end_update(self) -> None:
        """The update is complete: from here on, a save holds the run as it is."""
        self.boundary, self.past = None, self.boundary

    def reopen_update(self) -> None:
        """The update is not complete after all: a save holds the moment before it again."""
        self.boundary, self.past = self.past, None

    def forget(self) -> None:
        """Another training begins."""
        self.boundary = self.past = None


def _copy(tensor: th.Tensor) -> th.Tensor:
    return tensor.detach().to("cpu", copy=True)


def own_containers(value: Any) -> Any:
    """The value with new dicts and lists, so that later changes of the old ones do not reach it."""
    if isinstance(value, dict):
        return {key: own_containers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [own_containers(item) for item in value]
    return value
