"""What learners of action tokens without a critic share: the policy that they take, their steps, and their log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vla_agent.algorithms import health
from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.minibatch import Losses, step_on
from vla_agent.policy.policy import VLAPolicy

# What SB3's base asks for, and learners without a critic do not have.
NO_CRITIC: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0, "vf_coef": 0.0, "use_sde": False, "sde_sample_freq": -1}


class CriticFree(VLALearner):
    """The base of learners that train a `VLAPolicy`'s tokens alone; its value head stays as it is."""

    n_epochs: int
    target_kl: float | None
    gradient_accumulation_steps: int

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        policy = given["policy"]
        if isinstance(policy, type) and not issubclass(policy, VLAPolicy):
            raise ValueError(
                f"{type(self).__name__} scores action tokens, and the policy is {policy.__name__}; give 'VLAPolicy', "
                "or a subclass of it."
            )
        return super()._checked(given)

    def _take_steps(
        self, batches: Callable[[], Iterable[Any]], losses_of: Callable[[Any], Losses], log: health.UpdateLog
    ) -> None:
        """Epochs of minibatches, until the KL is too large.

        Args:
            batches: Gives the minibatches of an epoch.
            losses_of: Losses of a part of one.
            log: Log of the update.
        """
        for epoch in range(self.n_epochs):
            self._n_updates += 1  # one that is cut short counts, as SB3 counts
            log.restart("approx_kl")  # as SB3 logs the last epoch's
            for number, batch in enumerate(batches()):
                with health.advice_on_memory():
                    if not step_on(self, batch, losses_of, epoch == 0 and number == 0, log):
                        return

    def _log_update(self, metrics: dict[str, float], seconds: float) -> None:
        """Logs the means of an update and its seconds."""
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/skipped_steps", self.n_skipped_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/update_s", seconds)
