"""A student learns what its teacher thinks of the student's own decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th
from fakes import FakeBackbone, FakeConfig, FakeProcessor, fake_env
from resuming import StopAt, assert_equal_runs, callbacks
from stable_baselines3.common.policies import ActorCriticPolicy

from vla_agent import VLAPPO, RunError, VLADistillation, VLAVecEnv, make_vec_env
from vla_agent.algorithms.buffers import TokenSamples
from vla_agent.algorithms.distillation import load_teacher
from vla_agent.algorithms.loading import load_learner
from vla_agent.policy.policy import VLAPolicy

CPU = th.device("cpu")


def teacher(seed: int = 5, **kwargs: Any) -> FakeBackbone:
    """A model that is surer of itself than a new one."""
    made = FakeBackbone(seed=seed, **kwargs)
    with th.no_grad():
        made.lm_head.weight *= 6
    return made


def make(n_envs: int = 4, *, taught_by: Any = None, env: Any = None, **kwargs: Any) -> VLADistillation:
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "learning_rate": 3e-3, "seed": 0, "device": "cpu"}
    policy_kwargs = {"model": FakeBackbone()} | kwargs.pop("policy_kwargs", {})
    env = env or fake_env(n_envs)
    return VLADistillation("VLAPolicy", env, taught_by or teacher(), policy_kwargs=policy_kwargs, **settings | kwargs)


def divergence(model: VLADistillation) -> float:
    """KL(student || teacher) of a rollout's actions, over all bins."""
    metrics = {}
    buffer = model.rollout_buffer
    for batch in buffer.get():
        with th.no_grad():
            metrics = model._losses(batch).metrics
    return metrics["teacher_kl"].item()


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_the_student_approaches_its_teacher(estimator: Any) -> None:
    model = make(16, estimator=estimator, batch_size=64)
    model.learn(1)
    before = divergence(model)
    model.learn(4000)
    assert before > 1
    assert divergence(model) < 0.6 * before
    for parameter, own in zip(model._teacher.parameters(), teacher().parameters(), strict=True):  # type: ignore[union-attr]
        assert th.equal(parameter, own)


def test_both_estimates_have_the_gradient_of_the_reverse_kl() -> None:
    """At the first step, the mean of the sampled gradient over the student's own draws is the exact one."""
    model = make(2, policy_kwargs={"model": FakeBackbone(n_action_tokens=7)})
    policy = model.policy
    assert isinstance(policy, VLAPolicy)
    obs = {
        key: th.as_tensor(values).repeat(2048, *[1] * (values.ndim - 1)) for key, values in model.env.reset().items()
    }  # type: ignore[union-attr, attr-defined]
    gradients = {}
    for estimator in ("sampled", "exact"):
        th.manual_seed(0)
        model.estimator = estimator  # type: ignore[assignment]
        with th.no_grad():
            drawn = policy.act(obs)
        zeros = th.zeros(len(drawn.actions))
        part = TokenSamples(obs, drawn.actions, zeros, drawn.token_log_probs, zeros, zeros)
        policy.zero_grad()
        model._losses(part).loss.backward()
        gradients[estimator] = policy.backbone.lm_head.bias.grad.clone()  # type: ignore[attr-defined]
    cosine = th.nn.functional.cosine_similarity(gradients["sampled"], gradients["exact"], dim=0)
    assert cosine > 0.9
    assert 0.8 < gradients["sampled"].norm() / gradients["exact"].norm() < 1.25


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole, expected = make(n_epochs=2), callbacks()
    whole.learn(160, expected)
    cut = make(n_epochs=2)  # only now: its seed sets the generators
    cut.learn(160, [*callbacks(), StopAt(20)])
    cut.save(tmp_path / "a")

    def load(env: VLAVecEnv, **kwargs: Any) -> VLADistillation:
        policy_kwargs = {"model": FakeBackbone(seed=1)}
        return VLADistillation.load(tmp_path / "a", env, device="cpu", policy_kwargs=policy_kwargs, **kwargs)

    with pytest.raises(
        RunError, match=r"made with teacher=fakes\.FakeBackbone, .* VLADistillation\.load\(path, teacher="
    ):
        load(fake_env(4))
    resumed, result = load(fake_env(4), teacher=teacher()), callbacks()
    assert 0 < resumed.num_timesteps < 160
    resumed.learn(160 - resumed.num_timesteps, result, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)  # type: ignore[arg-type]


def test_a_teacher_is_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    """Here a run of PPO on the tiny model; its weights are the teacher's, and stay so."""
    env = make_vec_env("LIBERO-Spatial-v0", 1, task_id=0, model="tiny", renderer="fast", max_episode_steps=4)
    try:
        taught = VLAPPO("VLAPolicy", env, n_steps=4, batch_size=4, learning_rate=1e-3, seed=1, device="cpu")
        taught.save(tmp_path / "teacher")
        model = VLADistillation("VLAPolicy", env, str(tmp_path / "teacher"), n_steps=4, batch_size=4, device="cpu")
        model.learn(4)
        model.save(tmp_path / "student")
        again = VLADistillation.load(tmp_path / "student", env, device="cpu")
        assert again.teacher == str(tmp_path / "teacher")
        expected = taught.policy.backbone.state_dict()  # type: ignore[union-attr, operator]
        found = again._teacher.state_dict()  # type: ignore[union-attr]
        assert all(th.equal(tensor, found[name]) for name, tensor in expected.items())
        assert isinstance(load_learner(tmp_path / "student"), VLADistillation)  # acts without its teacher
    finally:
        env.close()
    assert load_teacher("tiny-libero-few", CPU).n_action_tokens == 56


def test_a_loaded_student_meets_its_teacher_with_its_environments(tmp_path: Path) -> None:
    make().save(tmp_path / "a")
    student = VLADistillation.load(tmp_path / "a", policy_kwargs={"model": FakeBackbone(seed=1)}, teacher=teacher())
    student.set_env(fake_env(4))
    student.learn(32)
    assert student.depends_on.keys() == {"teacher"}


def test_a_backbone_that_is_taught_elsewhere_stays_as_it_is() -> None:
    elsewhere = teacher()
    make(taught_by=elsewhere).learn(32)
    assert all(parameter.requires_grad for parameter in elsewhere.parameters())
    with pytest.raises(ValueError, match="the student's own backbone"):
        make(taught_by=elsewhere, policy_kwargs={"model": elsewhere})


def test_teachers_that_see_or_say_otherwise_are_refused() -> None:
    with pytest.raises(ValueError, match="The teacher cannot see what the student sees: The model gives 14 action"):
        make(taught_by=teacher(n_action_tokens=14))
    with pytest.raises(ValueError, match="cannot see what the student sees: The model reads wrist_image"):
        make(taught_by=teacher(config=FakeConfig(num_images=2)))
    other = teacher()
    other.processor = FakeProcessor("other")
    with pytest.raises(ValueError, match="The teacher writes other prompts or decodes bins to other actions"):
        make(taught_by=other)
    with pytest.raises(ValueError, match=r"teacher=3; expected a run's folder"):
        make(taught_by=3)
    with pytest.raises(ValueError, match="the policy is ActorCriticPolicy; give 'VLAPolicy'"):
        VLADistillation(ActorCriticPolicy, fake_env(1))
    with pytest.raises(ValueError, match=r"batch_size=24 does not divide n_steps \* n_envs = 32"):
        make(batch_size=24)
    assert isinstance(fake_env(1), VLAVecEnv)
