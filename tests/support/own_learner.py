"""A learner of one's own on the base: REINFORCE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th

from vla_agent import VLAPolicy
from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.rollout import Rollout


class Reinforce(VLALearner):
    """One step along log pi(a|s) times the reward above its mean, without a critic."""

    token_defaults: ClassVar = {"learning_rate": 1e-2}
    scale: float

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | None = None,
        n_steps: int = 8,
        scale: float = 1.0,
        verbose: int = 0,
        seed: int | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        device: str = "cpu",
        _init_setup_model: bool = True,
    ) -> None:
        given = self._checked(locals())
        with self._environments(env, given) as environments:
            unused = {"gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0, "max_grad_norm": 1.0}
            unused |= {"use_sde": False, "sde_sample_freq": -1, "rollout_buffer_class": TokenRolloutBuffer}
            super().__init__(policy, environments, **given, **unused)
            if _init_setup_model:
                self._setup_model()

    def _take_rollout(self, rollout: Rollout) -> None:
        super()._take_rollout(rollout)
        self.taken = rollout.actions.shape

    def train(self) -> None:
        self._begin_update()
        buffer, policy = self.rollout_buffer, self.policy
        assert isinstance(policy, VLAPolicy)
        above = th.as_tensor(buffer.swap_and_flatten(buffer.rewards)).flatten()
        buffer.advantages[:] = buffer.rewards - above.mean().item()
        for batch in buffer.get(buffer.buffer_size * buffer.n_envs):
            log_probs = policy.score(batch.observations, batch.actions).token_log_probs.sum(dim=1)  # type: ignore[arg-type]
            policy.optimizer.zero_grad()
            (-self.scale * (batch.advantages * log_probs).mean()).backward()
            policy.optimizer.step()
        self._end_update()
