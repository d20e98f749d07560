"""What VLAPPO adds to PPO, and that it notices when something is broken."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, FakeVectorEnv, fake_env
from learners import make_model, tiny_model
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import VLAPPO, RatioError, VLAPolicy, VLAVecEnv
from vla_agent.algorithms.buffers import TokenRolloutBuffer, compute_targets
from vla_agent.algorithms.health import UpdateLog, UpdateMonitor
from vla_agent.algorithms.rollout import bootstrap_time_limits
from vla_agent.bins import Sampling


def parameters(model: VLAPPO) -> dict[str, th.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def changed(before: dict[str, th.Tensor], model: VLAPPO) -> set[str]:
    return {name for name, value in parameters(model).items() if not th.equal(value, before[name])}


def logged(model: VLAPPO, total_timesteps: int) -> dict[str, Any]:
    """Metrics after one `learn`, unprinted."""
    model.learn(total_timesteps, log_interval=None)  # type: ignore[arg-type]
    return dict(model.logger.name_to_value)


def test_it_learns() -> None:
    """The image says which sign the first action must have; chance is one half."""
    env = fake_env(16, max_episode_steps=2)
    model = make_model(
        env,
        n_steps=16,
        batch_size=64,
        n_epochs=4,
        learning_rate=5e-3,
        value_learning_rate=5e-3,
        normalize_advantage=True,
        gamma=0.5,
    )
    rates = []
    for deterministic in (False, True):
        obs, hits = env.reset(), []
        for _ in range(50):
            actions, _ = model.predict(obs, deterministic=deterministic)
            obs, rewards, _, _ = env.step(actions)
            hits.append(rewards.mean())
        rates.append(np.mean(hits))
        if not deterministic:
            model.learn(16 * 16 * 25)
    assert rates[0] < 0.65
    assert rates[1] > 0.95


# ------------------------------------------------------------------------------------------ the additions


@pytest.mark.parametrize("bootstrapped", [False, True])
def test_time_limits_are_bootstrapped_unless_they_belong_to_the_task(bootstrapped: bool) -> None:
    model = make_model(bootstrap_time_limits=bootstrapped)
    model.policy.value_head.register_forward_hook(lambda head, inputs, values: 0 * values + 0.5)  # type: ignore[union-attr]
    model.learn(32)
    rewards = set(model.rollout_buffer.rewards.flatten().round(4).tolist())
    with_value = [pytest.approx(value, abs=1e-3) for value in (0.99 * 0.5, 1 + 0.99 * 0.5)]
    extra = [reward for reward in rewards if reward not in (0.0, 1.0)]
    assert all(reward in with_value for reward in extra)
    assert bool(extra) == bootstrapped


def test_reward_terms_and_success_per_task_are_always_logged() -> None:
    model = make_model(bootstrap_time_limits=False)  # so that the buffer holds the environments' rewards
    metrics = logged(model, 32)
    assert metrics["rollout/reward_success"] == pytest.approx(model.rollout_buffer.rewards.mean())
    assert 0 < metrics["rollout/reward_success"] < 1
    assert {"rollout/success_task_0", "rollout/success_task_1"} <= metrics.keys()


@pytest.mark.parametrize("additions", [{}, {"ratio_level": "token"}, {"value_loss": "huber", "huber_delta": 0.1}])
def test_accumulated_gradient_is_the_whole_minibatch_s(additions: dict[str, Any]) -> None:
    gradients = []
    for steps in (1, 4, 16):
        model = make_model(gradient_accumulation_steps=steps, normalize_advantage=True, ent_coef=0.1, **additions)
        model.policy.optimizer.step = lambda: None  # type: ignore[method-assign]
        model.max_grad_norm = np.inf
        model.learn(32)
        gradients.append({n: p.grad for n, p in model.policy.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 or name.startswith("value_head")
        for other in gradients[1:]:
            th.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_critic_warmup_changes_the_value_head_alone() -> None:
    for model in (make_model(critic_warmup_iterations=2), tiny_model(critic_warmup_iterations=2)):
        per_iteration = model.n_steps * model.n_envs
        before = parameters(model)
        model.learn(2 * per_iteration)
        assert changed(before, model) == {name for name in before if name.startswith("value_head.")}
        model.learn(per_iteration, reset_num_timesteps=False)
        assert any(name.startswith("_backbone.") for name in changed(before, model))


def test_advantages_and_returns_have_a_lambda_each() -> None:
    short, long = (make_model(gae_lambda=value, n_steps=6, batch_size=12).rollout_buffer for value in (0.5, 0.9))
    for buffer in (short, long):
        buffer.rewards[:], buffer.values[:] = np.random.default_rng(0).normal(size=(2, 6, 2))
        buffer.episode_starts[3] = 1
    last, dones = th.tensor([[0.3], [-0.2]]), np.array([0.0, 1.0])
    short.compute_returns_and_advantage(last_values=last, dones=dones)
    advantages = short.advantages.copy()
    long.compute_returns_and_advantage(last_values=last, dones=dones)
    compute_targets(short, last, dones, value_gae_lambda=0.9)
    np.testing.assert_array_equal(short.returns, long.returns)
    np.testing.assert_array_equal(short.advantages, advantages)
    assert not np.allclose(advantages, long.advantages)


def test_value_epochs_fit_the_head_alone() -> None:
    env = fake_env(2, privileged=True, max_episode_steps=16)  # the critic knows the time, which returns depend on
    model = make_model(env, n_value_epochs=40, critic_warmup_iterations=9, value_learning_rate=1e-2, n_steps=32)
    before = parameters(model)
    model.learn(64)
    assert {name.split(".")[0] for name in changed(before, model)} == {"value_head"}
    buffer = model.rollout_buffer
    fitted = model.policy.value_head(th.as_tensor(buffer.swap_and_flatten(model.rollout_value_inputs.numpy())))
    unexplained = np.var(buffer.returns.flatten() - fitted.detach().numpy().flatten()) / np.var(buffer.returns)
    assert unexplained < 0.7  # the rest is the actions' chance


def test_only_adapters_and_critic_change() -> None:
    model = tiny_model(policy_kwargs={"lora": {"r": 2}})
    before = parameters(model)
    model.learn(24)
    moved = changed(before, model)
    assert any("lora_" in name for name in moved)
    assert all("lora_" in name or name.startswith("value_head.") for name in moved)


def test_policy_s_learning_rate_rises_after_the_critic_s_warmup() -> None:
    model = make_model(
        critic_warmup_iterations=2, policy_warmup_iterations=4, learning_rate=0.1, value_learning_rate=0.5
    )
    rates = []
    for iteration in range(8):
        model.n_iterations = iteration
        model._logger = configure(None, [""])
        model._update_learning_rate(model.policy.optimizer)
        policy, value = model.policy.optimizer.param_groups
        rates.append(policy["lr"])
        assert value["lr"] == 0.5
        assert model.logger.name_to_value["train/learning_rate"] == policy["lr"]
    assert rates == pytest.approx([0.025, 0.025, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_value_head_has_a_learning_rate_of_its_own() -> None:
    def rates(model: VLAPPO) -> dict[str, float]:
        model.learn(32)
        return {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}

    assert rates(make_model()) == pytest.approx({"policy": 1e-3, "value": 1e-2})
    assert rates(make_model(value_learning_rate=5e-4)) == pytest.approx({"policy": 1e-3, "value": 5e-4})
    schedule = LinearSchedule(1.0, 0.0, 1.0)
    assert rates(make_model(value_learning_rate=schedule)) == pytest.approx({"policy": 1e-3, "value": 0.0})


def test_token_ratios_are_clipped_one_by_one() -> None:
    model = make_model(ratio_level="token", n_epochs=3, learning_rate=3e-2)
    metrics = logged(model, 32)
    assert isinstance(model.rollout_buffer, TokenRolloutBuffer)
    buffer = model.rollout_buffer
    assert buffer.log_probs.shape == (32, 7)
    assert metrics["train/first_ratio_error"] < 1e-5
    # 7 ratios a sample: the share of clipped ones need not be a multiple of 1 / 32
    assert (metrics["train/clip_fraction"] * 32 * 3) % 1 != pytest.approx(0, abs=1e-6)


def test_token_buffer_hands_back_what_it_was_given() -> None:
    model = make_model(ratio_level="token")
    model.learn(32)
    for batch in model.rollout_buffer.get(16):
        assert batch.old_log_prob.shape == (16, 7)
        scores = model.policy.score(batch.observations, batch.actions)  # type: ignore[operator]
        gap = (scores.token_log_probs - batch.old_log_prob).abs()
        assert 0 < gap.mean() < 0.5  # trained since, by one step


def test_kl_to_the_reference_pulls_back() -> None:
    distances = []
    for coefficient in (1e-9, 3.0):
        torch_kwargs = {"kl_ref_coef": coefficient, "learning_rate": 1e-2, "n_epochs": 8, "n_steps": 8}
        model = make_model(policy_kwargs={"lora": {"r": 4}}, **torch_kwargs)
        metrics = logged(model, 16 * 4)
        distances.append(metrics["train/kl_ref"])
    assert 0 < distances[1] < 0.5 * distances[0]


def test_first_kl_to_the_reference_is_zero() -> None:
    model = make_model(policy_kwargs={"lora": {"r": 4}}, kl_ref_coef=1.0, batch_size=32)
    assert logged(model, 32)["train/kl_ref"] == pytest.approx(0.0, abs=1e-6)


def test_target_kl_stops_before_the_step() -> None:
    model = make_model(target_kl=1e-9, n_epochs=5, learning_rate=1e-2)
    logged(model, 32)
    assert model._n_updates == 1


def test_time_limits_are_bootstrapped_in_one_call() -> None:
    model = make_model(fake_env(6))
    policy = model.policy
    assert isinstance(policy, VLAPolicy)
    with th.no_grad():
        policy.value_head.layers[-1].bias.fill_(2.0)
    obs = model.env.reset()  # type: ignore[union-attr]
    assert isinstance(obs, dict)
    row = {key: value[0] for key, value in obs.items()}
    infos: list[dict[str, Any]] = [{} for _ in range(6)]
    infos[1] = {"terminal_observation": row, "TimeLimit.truncated": True}
    infos[2] = {"terminal_observation": row, "TimeLimit.truncated": False}
    infos[4] = {"terminal_observation": row, "TimeLimit.truncated": True}
    calls = []
    predict_values = policy.predict_values
    policy.predict_values = lambda obs: calls.append(1) or predict_values(obs)  # type: ignore[method-assign, func-returns-value]
    rewards = np.ones(6, dtype=np.float32)
    bootstrap_time_limits(policy, 0.5, rewards, np.array([0, 1, 1, 0, 1, 0], dtype=bool), infos)
    assert rewards == pytest.approx([1, 2, 1, 1, 2, 1])
    assert len(calls) == 1


def test_defaults_with_a_vla_are_vla_rl_s() -> None:
    model = VLAPPO("VLAPolicy", fake_env(3), policy_kwargs={"model": FakeBackbone()}, device="cpu")
    assert (model.n_steps, model.batch_size, model.n_epochs, model.learning_rate) == (128, 32, 1, 2e-5)
    assert (model.gamma, model.gae_lambda, model.normalize_advantage, model.max_grad_norm) == (0.99, 0.95, False, 1.0)
    assert model.critic_warmup_iterations == 5
    assert model.clip_range(1.0) == 0.2  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize("make", [make_model, tiny_model], ids=["fake", "tiny"])
def test_ratio_is_one_before_first_update_and_then_moves(make: Any) -> None:
    model = make(n_epochs=2)
    metrics = logged(model, model.n_steps * model.n_envs)
    assert metrics["train/first_ratio_error"] < 1e-3
    assert abs(metrics["train/log_prob_gap"]) < 1e-3
    assert metrics["train/ratio_deviation"] > metrics["train/first_ratio_error"]


def test_another_temperature_in_scoring_is_an_error() -> None:
    model = make_model()
    model.learn(32)
    act = model.policy.act  # type: ignore[operator]

    def act_hot(*args: Any) -> Any:
        model.policy.sampling = Sampling(temperature=1.5)
        decision = act(*args)
        model.policy.sampling = Sampling(temperature=1.0)
        return decision

    model.policy.act = act_hot  # type: ignore[assignment]
    before = parameters(model)
    with pytest.raises(RatioError, match="another temperature"):
        model.learn(32)
    assert not changed(before, model)


def test_other_policies_are_warned_about_the_first_ratio() -> None:
    model = VLAPPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
    model._monitor.tolerance = -1.0
    with pytest.warns(UserWarning, match="Sampling and scoring differ"):
        model.learn(64)


def test_old_log_probs_that_follow_the_new_ones_are_noticed() -> None:
    """The published VLA-RL code overwrites the old log-probability, so that its ratio is always one."""
    model = make_model(n_epochs=2)
    losses = model._losses

    def broken(part: Any, *args: Any) -> Any:
        log_prob = model.scoring.score(model.policy, part).log_probs
        return losses(part._replace(old_log_prob=log_prob.detach()), *args)

    model._losses = broken  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="stayed exactly one"):
        model.learn(32)


def test_constant_critic_is_noticed_once() -> None:
    """The published VLA-RL code likely reads its critic at a padding position."""
    model = make_model()
    head = model.policy.value_head  # type: ignore[union-attr]
    forward = head.forward  # type: ignore[union-attr]
    head.forward = lambda hidden: forward(th.ones_like(hidden))  # type: ignore[union-attr, assignment]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(32 * 4)
    assert [str(w.message)[:38] for w in caught if "critic" in str(w.message)] == [
        "The critic gives every observation the"
    ]


def test_working_critic_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model().learn(32 * 4)
        monitor = UpdateMonitor(1e-3, strict=True)
        monitor.check_critic(np.ones(5), np.zeros(5), np.arange(5))
        monitor.check_critic(np.ones(5), np.arange(5), np.zeros((5, 2)))


def test_metrics_of_an_update() -> None:
    metrics = logged(make_model(critic_warmup_iterations=1), 64)
    names = "approx_kl clip_fraction critic_warmup entropy_gripper entropy_loss entropy_pitch entropy_roll entropy_x"
    names += " entropy_y entropy_yaw entropy_z explained_variance first_ratio_error grad_norm grad_norm_policy"
    names += (
        " grad_norm_value learning_rate log_prob_gap loss policy_gradient_loss value_learning_rate value_loss value_std"
    )
    missing = [name for name in names.split() if f"train/{name}" not in metrics]
    assert not missing
    for phase in ("rollout", "decode", "env", "update"):
        assert metrics[f"time/{phase}_s"] > 0
    assert metrics["time/decode_s"] + metrics["time/env_s"] <= metrics["time/rollout_s"]
    entropies = [value for name, value in metrics.items() if name.startswith("train/entropy_") and "loss" not in name]
    assert len(entropies) == 7
    assert sum(entropies) == pytest.approx(-metrics["train/entropy_loss"], rel=1e-4)


def test_metrics_of_the_host_are_read_with_those_of_the_policys_device() -> None:
    """As those of rollouts that an earlier policy drew. The device "meta" mixes with the host no more than a GPU."""
    log = UpdateLog()
    log.add("behaviour_gap", th.tensor(0.5))
    log.add("loss", th.tensor(1.0, device="meta"))
    log.add("loss", th.tensor(2.0, device="meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # they are together by then
        log.means()
    log = UpdateLog()
    assert log.means() == {}
    log.add("loss", th.tensor(1))
    log.add("loss", th.tensor(2))
    log.add("behaviour_gap", th.tensor(0.5, dtype=th.float64))
    assert log.means() == {"loss": 1.5, "behaviour_gap": 0.5}


def test_last_update_is_logged(tmp_path: Any) -> None:
    from stable_baselines3.common.logger import configure

    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64)
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # two rollouts and the last update


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 12}, r"n_steps \* n_envs = 32; the last minibatch would have 8 samples. Use 8 or 16."),
        ({"batch_size": 64}, "Use 32"),
        ({"gradient_accumulation_steps": 3}, "does not divide batch_size=16"),
        ({"gradient_accumulation_steps": 0}, "of at least 1"),
        ({"value_loss": "l1"}, "Choices: 'mse', 'huber'"),
        ({"ratio_level": "dim"}, "Choices: 'action', 'token'"),
        ({"critic_warmup_iterations": -1}, "at least 0"),
        ({"kl_ref_coef": 0.1}, "needs adapters"),
        ({"ratio_level": "token", "rollout_buffer_class": TokenRolloutBuffer}, "its own rollout buffer"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"critic_warmup_iterations": 1}, {"ratio_level": "token"}, {"value_learning_rate": 1e-3}]
)
def test_additions_for_vla_policies_are_refused_with_others(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only for 'VLAPolicy'"):
        VLAPPO("MlpPolicy", "CartPole-v1", device="cpu", **kwargs)


def test_each_addition_that_is_refused_has_a_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^n_value_epochs=2 is only .*; leave it out\. policy_warmup_iterations=3 is only"
    ):
        VLAPPO("MlpPolicy", "CartPole-v1", device="cpu", policy_warmup_iterations=3, n_value_epochs=2)


def test_environment_of_another_model_is_refused() -> None:
    env = VLAVecEnv(FakeVectorEnv(2), FakeProcessor("other"))
    with pytest.raises(ValueError, match="for another model than the policy's"):
        make_model(env)


def test_out_of_memory_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VLAPPO("VLAPolicy", fake_env(), n_steps=8, batch_size=4, policy_kwargs={"model": FakeBackbone()})

    def run_out(*args: Any) -> None:
        raise th.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "_update_minibatch", run_out)
    with pytest.raises(th.OutOfMemoryError) as caught:
        model.learn(8)
    assert "gradient_accumulation_steps" in caught.value.__notes__[0]
