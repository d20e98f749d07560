"""On-policy distillation: a student learns, on the decisions that it takes itself, what its teacher thinks of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from libero_gym.common.checks import real_number
from vla_agent.algorithms import health, losses
from vla_agent.algorithms.buffers import TokenRolloutBuffer, TokenSamples
from vla_agent.algorithms.critic_free import NO_CRITIC, CriticFree
from vla_agent.algorithms.loading import load_learner
from vla_agent.algorithms.minibatch import Losses
from vla_agent.algorithms.rollout import Rollout
from vla_agent.backbone import VLABackbone, is_backbone
from vla_agent.bins import gather_bins
from vla_agent.common.hashes import hash_weights
from vla_agent.policy.checks import check_fit
from vla_agent.policy.loading import load_backbone
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.choosing import choose_save, is_run_folder
from vla_agent.runs.run_files import is_run


class VLADistillation(CriticFree):
    """Distils a teacher into a `VLAPolicy` on the student's own rollouts, without rewards.

    It minimises the reverse KL divergence KL(pi_student || pi_teacher) over the states that the student visits, so that
    its own mistakes are corrected, where cloning the teacher's episodes shows it none (Agarwal et al., 2024, arXiv
    2306.13649; Gu et al., 2024, arXiv 2306.08543). With a_t the student's tokens, each has

    * "sampled": A_t = ln pi_teacher(a_t) - ln pi_student(a_t), in a clipped policy loss with one ratio per token;
    * "exact": the loss sum_b pi_student(b) (ln pi_student(b) - ln pi_teacher(b)) over all 256 bins, which has less
      variance, and takes one step per decision towards the same end.

    Teacher and student draw and score at the student's temperature. The student may be smaller than its teacher; both
    read the same observations and prompts, and decide the same chunks.

    Args:
        policy: "VLAPolicy", or a subclass.
        env: What `make_vec_env` gives; its rewards are logged and not learned from.
        teacher: Folder of a run, whose best save counts, a saved run, a checkpoint, or a backbone. A backbone is not
            saved with the run: give it to `load` again.
        n_steps, batch_size, n_epochs: Decisions per environment and iteration, decisions per minibatch, and passes.
        estimator: "sampled" or "exact".
        clip_range: How far a token's ratio may go, for "sampled".
        policy_warmup_iterations, gradient_accumulation_steps, target_kl, ratio_tolerance: As in `VLAPPO`.

    The other arguments are SB3's.

    Raises:
        ValueError: If an argument is out of range, or the teacher is for other observations, prompts or actions.
    """

    token_defaults = {"learning_rate": 2e-5, "n_steps": 32, "batch_size": 128, "max_grad_norm": 1.0}

    teacher: str | Path | VLABackbone | None
    n_steps: int
    batch_size: int
    clip_range: float
    estimator: losses.Estimator

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        teacher: str | Path | VLABackbone | None = None,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 1,
        clip_range: float = 0.2,
        max_grad_norm: float | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        estimator: losses.Estimator = "sampled",
        gradient_accumulation_steps: int = 1,
        policy_warmup_iterations: int = 0,
        ratio_tolerance: float | None = None,
    ) -> None:
        given = self._checked(locals())
        self._teacher: VLABackbone | None = None
        with self._environments(env, given) as environments:
            super().__init__(policy, environments, **given, **NO_CRITIC, ent_coef=0.0)
            if _init_setup_model:
                self._setup_model()

    def train(self) -> None:
        """Updates the student from the rollout buffer: epochs of minibatches, until the KL is too large."""
        self._before_update()
        self._engine.update(self, self._train)

    def _train(self) -> None:
        stopwatch, log = health.Stopwatch(), health.UpdateLog()
        with stopwatch("update"):
            self._begin_update()
            self._take_steps(lambda: self.rollout_buffer.get(self.batch_size), self._losses, log)
            metrics = log.means()
        self._monitor.check_policy_moves(metrics, self.policy.optimizer)
        self._log_update(metrics, stopwatch.seconds["update"])
        self._end_update()

    def _losses(self, part: TokenSamples) -> Losses:
        policy = cast(VLAPolicy, self.policy)
        scores = policy.score(part.observations, part.actions)
        taught = self._teacher_log_probs(part)
        differences = scores.token_log_probs - part.old_log_prob
        log_ratio = differences.sum(dim=1)
        divergence = losses.reference_kl(scores.log_probs, taught)
        if self.estimator == "exact":
            loss = divergence
        else:
            advantages = gather_bins(taught, part.actions) - part.old_log_prob
            loss = losses.clipped_surrogate(th.exp(differences), advantages, self.clip_range)
        with th.no_grad():
            metrics = {
                "loss": loss,
                "teacher_kl": divergence,
                "teacher_agreement": (scores.log_probs.argmax(-1) == taught.argmax(-1)).float().mean(),
                "clip_fraction": losses.clip_fraction(th.exp(differences), self.clip_range),
                "approx_kl": losses.approximate_kl(log_ratio),
            }
        return Losses(loss, log_ratio, metrics | health.entropy_by_dim(scores.token_entropies))

    def _teacher_log_probs(self, part: TokenSamples) -> th.Tensor:
        """The teacher's log-probabilities (B, N, 256) along the student's chains."""
        assert self._teacher is not None
        policy = cast(VLAPolicy, self.policy)
        with th.no_grad():
            inputs = policy.backbone_inputs(part.observations, self._teacher)
            logits = self._teacher.score_actions(**inputs, bins=part.actions.long()).logits
        return policy.sampling.log_probs(logits, drawn=part.actions)

    # --------------------------------------------------------------------------------------------- set-up

    def _check_together(self, given: Mapping[str, Any], n_envs: int | None) -> None:
        real_number("clip_range", given["clip_range"], above=0, below=1)
        self.scoring.check_batches(given["n_steps"], n_envs, given["batch_size"])

    def _setup_model(self) -> None:
        self.rollout_buffer_class = TokenRolloutBuffer
        self.scoring.check_batches(self.n_steps, self.n_envs, self.batch_size)
        super()._setup_model()
        if self.env is not None:  # to act, a student needs no teacher
            self._meet_teacher()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's.

        Raises:
            ValueError: If the environments are others than the policy is for, or there is no teacher.
        """
        if self._teacher is None:
            self._meet_teacher()
        super().set_env(env, force_reset)

    def _meet_teacher(self) -> None:
        if self.teacher is None:
            raise ValueError("VLADistillation needs teacher=: a run's folder, a checkpoint, or a backbone.")
        teacher = load_teacher(self.teacher, self.device)
        self._check_teacher(cast(VLAPolicy, self.policy).backbone, teacher)
        self._teacher = teacher

    def _check_teacher(self, student: VLABackbone, teacher: VLABackbone) -> None:
        if teacher is student:
            raise ValueError("teacher= is the student's own backbone; give another, such as a run's folder.")
        try:
            check_fit(teacher, cast(spaces.Dict, self.observation_space), cast(spaces.MultiDiscrete, self.action_space))
        except ValueError as error:
            raise ValueError(f"The teacher cannot see what the student sees: {error}") from error
        if student.processor.fingerprint() != teacher.processor.fingerprint():
            raise ValueError(
                "The teacher writes other prompts or decodes bins to other actions than the student, so that its "
                "probabilities are of other actions; take a teacher that was trained from the same model's tokenizer "
                "and statistics."
            )

    @property
    def depends_on(self) -> dict[str, str]:
        """The teacher's weights; a run's folder stands for its best save, which may be another one by now."""
        teacher = cast(th.nn.Module | None, self._teacher)
        return {} if teacher is None else {"teacher": hash_weights(teacher.state_dict())[:16]}

    def _take_rollout(self, rollout: Rollout) -> None:
        """Finds no advantages: there is nothing to learn from rewards."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_teacher", "teacher"]


def load_teacher(teacher: str | Path | VLABackbone, device: th.device) -> VLABackbone:
    """A teacher's backbone, to be asked without gradients.

    Args:
        teacher: See `VLADistillation`.
        device: Device to load it to.

    Raises:
        ValueError: If it is neither a name nor a backbone.
        CheckpointError: If there is no such checkpoint; or RunError, no such run.
    """
    if isinstance(teacher, (str, Path)):
        path = choose_save(teacher).path if is_run_folder(teacher) else teacher
        found = load_learner(path, device).policy.backbone if is_run(path) else load_backbone(path, device=device)
    elif is_backbone(teacher):
        found = teacher
    else:
        raise ValueError(f"teacher={teacher!r:.80}; expected a run's folder, a checkpoint, or a backbone.")
    return cast(VLABackbone, cast(th.nn.Module, found).eval())  # the caller may train it elsewhere: nothing is frozen
