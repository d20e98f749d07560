"""VLAPolicy on the fake backbone, and the same checks on the real tiny model."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeConfig, FakeVectorEnv, fake_env
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.utils import obs_as_tensor

from vla_agent import VLAPPO, VLAPolicy, VLAVecEnv
from vla_agent.backbone import Abilities
from vla_agent.openvla import load_processor

MakePolicy = Callable[..., tuple[VLAPolicy, VLAVecEnv]]


def make_fake(**kwargs: Any) -> tuple[VLAPolicy, VLAVecEnv]:
    env = fake_env(4)
    return VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, FakeBackbone(), **kwargs), env


def make_tiny(**kwargs: Any) -> tuple[VLAPolicy, VLAVecEnv]:
    env = VLAVecEnv(FakeVectorEnv(4, size=112), load_processor("tiny"))
    return VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, "tiny", **kwargs), env


@pytest.fixture(params=[make_fake, make_tiny], ids=["fake", "tiny"])
def make_policy(request: pytest.FixtureRequest) -> MakePolicy:
    return request.param


def tensors(env: VLAVecEnv) -> dict[str, th.Tensor]:
    env.seed(0)
    return {key: th.as_tensor(value) for key, value in env.reset().items()}


def perturb(policy: VLAPolicy, scale: float = 0.1) -> None:
    """Moves every trained parameter, so that nothing is at its special starting point."""
    th.manual_seed(1)
    with th.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * th.randn_like(parameter))


# ----------------------------------------------------------------------------------- acting and scoring


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5}, {"top_k": 20, "temperature": 1.5}, {"top_p": 0.7}])
def test_sampling_and_scoring_give_one_log_prob(make_policy: MakePolicy, sampling: dict[str, Any]) -> None:
    policy, env = make_policy(**sampling)
    perturb(policy, 0.02)
    obs = tensors(env)
    th.manual_seed(0)
    actions, values, log_prob = policy(obs)
    scored_values, scored, entropy = policy.evaluate_actions(obs, actions.float())
    th.testing.assert_close(log_prob, scored, atol=1e-4, rtol=0)
    th.testing.assert_close(values, scored_values, atol=1e-4, rtol=0)
    assert actions.dtype == th.int64
    assert actions.shape == (4, 7)
    assert values.shape == (4, 1)
    assert log_prob.shape == entropy.shape == (4,)


def test_temperature_is_that_of_the_samples_too(make_policy: MakePolicy) -> None:
    """A cold policy draws its mode, and a hot one anything; a wrong one would be biased with a ratio of one."""
    cold, env = make_policy(temperature=1e-4)
    perturb(cold)
    obs = tensors(env)
    for actions in (cold.act(obs).actions, cold.get_distribution(obs).sample()):
        assert th.equal(actions, cold.act(obs, deterministic=True).actions)
    hot, _ = make_policy(temperature=1e4)
    hot.load_state_dict(cold.state_dict())
    assert (hot.act(obs).actions == cold.act(obs).actions).float().mean() < 0.2


def test_truncation_holds_for_samples_and_for_the_distribution(make_policy: MakePolicy) -> None:
    """With a single bin left, the policy draws its mode and is sure of it."""
    policy, env = make_policy(top_k=1)
    perturb(policy)
    obs = tensors(env)
    mode = policy.act(obs, deterministic=True).actions
    assert th.equal(policy.act(obs).actions, mode)
    distribution = policy.get_distribution(obs)
    assert th.equal(distribution.sample(), mode)
    th.testing.assert_close(distribution.log_prob(mode), th.zeros(len(mode)))


def test_temperature_moves_the_log_prob(make_policy: MakePolicy) -> None:
    policy, env = make_policy(temperature=1.0)
    hot, _ = make_policy(temperature=3.0)
    perturb(policy)
    hot.load_state_dict(policy.state_dict())
    obs, actions = tensors(env), th.zeros(4, 7)
    assert (policy.evaluate_actions(obs, actions)[1] - hot.evaluate_actions(obs, actions)[1]).abs().min() > 1e-3


def test_evaluate_actions_is_the_sum_of_conditional_terms(make_policy: MakePolicy) -> None:
    policy, env = make_policy(temperature=1.3)
    perturb(policy)
    obs, actions = tensors(env), th.randint(256, (4, 7))
    terms = []
    for i in range(7):  # token i's score must not see what follows
        hidden_future = actions.clone()
        hidden_future[:, i + 1 :] = 0
        logits = policy.backbone.score_actions(**policy.backbone_inputs(obs), bins=hidden_future).logits
        terms.append((logits[:, i] / 1.3).log_softmax(-1).gather(1, actions[:, i : i + 1])[:, 0])
    th.testing.assert_close(policy.evaluate_actions(obs, actions)[1], sum(terms), atol=1e-4, rtol=1e-5)


def test_values_and_features_need_no_actions(make_policy: MakePolicy) -> None:
    policy, env = make_policy()
    perturb(policy)
    obs = tensors(env)
    features = policy.extract_features(obs)
    assert features.shape == (4, policy.backbone.hidden_size)
    th.testing.assert_close(policy.value_head(features), policy.predict_values(obs))


def test_values_carry_gradients_unless_the_backbone_is_frozen() -> None:
    policy, env = make_fake()
    obs = tensors(env)
    policy.predict_values(obs).sum().backward()
    assert policy.backbone.vision.weight.grad is not None
    policy.backbone.vision.weight.grad = None
    policy.backbone_frozen = True
    policy.predict_values(obs).sum().backward()
    assert policy.backbone.vision.weight.grad is None


def test_what_sb3_offers_and_a_vla_has_not_is_told() -> None:
    policy, _ = make_fake()
    with pytest.raises(NotImplementedError, match="no noise to reset"):
        policy.reset_noise()
    with pytest.raises(NotImplementedError, match=r"kept with its algorithm.*VLAPPO\.save"):
        policy._get_constructor_parameters()


def test_a_model_without_bins_is_refused_before_it_acts() -> None:
    env = fake_env(4)
    model = FakeBackbone()
    model.abilities = Abilities(speaks_bins=False, regresses_actions=True)
    with pytest.raises(ValueError, match="neither draws nor scores bins"):
        VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model)


def test_get_distribution_agrees_with_evaluate_actions(make_policy: MakePolicy) -> None:
    policy, env = make_policy()
    perturb(policy)
    obs = tensors(env)
    distribution = policy.get_distribution(obs)
    actions = distribution.sample()
    _, log_prob, entropy = policy.evaluate_actions(obs, actions)
    th.testing.assert_close(distribution.log_prob(actions), log_prob, atol=1e-4, rtol=1e-5)
    th.testing.assert_close(distribution.entropy(), entropy, atol=1e-4, rtol=1e-5)
    other = (actions + 1) % 256
    th.testing.assert_close(distribution.log_prob(other), policy.evaluate_actions(obs, other)[1], atol=1e-4, rtol=1e-5)


def test_predict_is_deterministic_and_takes_one_observation_or_many(make_policy: MakePolicy) -> None:
    policy, env = make_policy()
    perturb(policy)
    env.seed(0)
    obs = env.reset()
    actions, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(actions, policy.predict(obs, deterministic=True)[0])
    single, _ = policy.predict({key: value[2] for key, value in obs.items()}, deterministic=True)
    assert single.shape == (7,)
    np.testing.assert_array_equal(single, actions[2])
    th.testing.assert_close(th.as_tensor(actions), policy.get_distribution(obs_as_tensor(obs, th.device("cpu"))).mode())


def test_values_do_not_depend_on_the_actions_nor_on_padding(make_policy: MakePolicy) -> None:
    policy, env = make_policy()
    perturb(policy)
    obs = tensors(env)
    values = policy.predict_values(obs)
    assert values.std() > 1e-3
    scored = policy.score(obs, th.randint(256, (4, 7))).values
    th.testing.assert_close(values, scored, atol=1e-5, rtol=1e-5)
    longer = {**obs}
    longer["input_ids"] = th.nn.functional.pad(obs["input_ids"], (0, 3), value=5)
    longer["attention_mask"] = th.nn.functional.pad(obs["attention_mask"], (0, 3))
    th.testing.assert_close(values, policy.predict_values(longer), atol=1e-5, rtol=1e-5)


def test_first_values_are_zero(make_policy: MakePolicy) -> None:
    policy, env = make_policy()
    assert policy.predict_values(tensors(env)).abs().max() == 0


def test_what_the_critic_knows_reaches_the_values_alone() -> None:
    env = fake_env(4, privileged=True)
    policy = VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, FakeBackbone())
    perturb(policy)
    obs, actions = tensors(env), th.zeros(4, 7, dtype=th.int64)
    other = obs | {"privileged": obs["privileged"] + 1}
    assert (policy.predict_values(obs) - policy.predict_values(other)).abs().min() > 1e-3
    first, second = policy.score(obs, actions), policy.score(other, actions)
    assert th.equal(first.token_log_probs, second.token_log_probs)
    assert not th.allclose(first.values, second.values)
    without = {key: value.numpy() for key, value in obs.items() if key != "privileged"}
    np.testing.assert_array_equal(
        policy.predict(without, deterministic=True)[0],
        policy.predict({key: value.numpy() for key, value in obs.items()}, deterministic=True)[0],
    )


def test_images_in_either_channel_order_give_the_same() -> None:
    policy, env = make_fake()
    perturb(policy)
    transposed = spaces.Dict(dict(env.observation_space.spaces) | {"image": spaces.Box(0, 255, (3, 16, 16), np.uint8)})
    other = VLAPolicy(transposed, env.action_space, lambda _: 1e-3, FakeBackbone())
    other.load_state_dict(policy.state_dict())
    obs = tensors(env)
    chw = obs | {"image": obs["image"].permute(0, 3, 1, 2)}
    th.testing.assert_close(policy.predict_values(obs), other.predict_values(chw))


def test_wrist_camera_and_state_reach_the_model() -> None:
    env = fake_env(2, wrist=True)
    backbone = FakeBackbone(config=FakeConfig(num_images=2, use_state=True))
    policy = VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, backbone)
    perturb(policy)
    obs = tensors(env)
    values = policy.predict_values(obs)
    for key in ("wrist_image", "state"):
        changed = obs | {key: obs[key] + 1}
        assert (policy.predict_values(changed) - values).abs().min() > 1e-6


# ---------------------------------------------------------------------------------------- what is trained


def test_unused_and_frozen_parameters_stay_out_of_the_optimizer(make_policy: MakePolicy) -> None:
    policy, _ = make_policy()
    optimized = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    unused = policy.backbone.unused_parameter_names()
    named = dict(policy._backbone.named_parameters())
    assert unused
    assert not any(id(named[name]) in optimized for name in unused)
    assert {group["name"] for group in policy.optimizer.param_groups} == {"policy", "value"}
    assert all(id(p) in optimized for name, p in named.items() if name not in unused)
    assert all(id(p) in optimized for p in policy.value_head.parameters())


def test_frozen_children_do_not_get_gradients() -> None:
    policy, env = make_fake(frozen=("vision",))
    obs = tensors(env)
    policy.evaluate_actions(obs, th.zeros(4, 7))[1].sum().backward()
    assert policy._backbone.vision.weight.grad is None
    assert policy._backbone.cell.weight_ih.grad is not None
    with pytest.raises(ValueError, match="no child of the backbone"):
        make_fake(frozen=("vison",))


def test_detached_value_leaves_the_backbone_alone() -> None:
    for detach in (True, False):
        policy, env = make_fake(detach_value=detach)
        perturb(policy)
        policy.evaluate_actions(tensors(env), th.zeros(4, 7))[0].sum().backward()
        assert (policy._backbone.vision.weight.grad is None) == detach


def test_gradient_checkpointing_keeps_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy, env = make_tiny(gradient_checkpointing=checkpointing)
        policy.set_training_mode(True)
        policy.evaluate_actions(tensors(env), th.zeros(4, 7))[1].sum().backward()
        gradients.append(policy._backbone.language_model.model.layers[0].mlp.up_proj.weight.grad)
    th.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        make_fake(gradient_checkpointing=True)


def test_cuda_graphs_can_be_turned_off_where_the_backbone_has_any() -> None:
    assert make_tiny()[0].backbone.graphs.enabled
    assert not make_tiny(cuda_graphs=False)[0].backbone.graphs.enabled
    make_fake(cuda_graphs=False)


# ------------------------------------------------------------------------------------------------- types


def test_autocast_computes_in_bfloat16_over_float32_weights() -> None:
    exact, env = make_tiny()
    policy, _ = make_tiny(autocast="bfloat16")
    assert exact.compute_dtype == th.float32
    assert policy.compute_dtype == th.bfloat16
    assert {parameter.dtype for parameter in policy.parameters()} == {th.float32}
    for each in (exact, policy):
        perturb(each)
    obs = tensors(env)
    th.manual_seed(0)
    actions, _, drawn = policy(obs)
    _, scored, _ = policy.evaluate_actions(obs, actions)
    assert (drawn - scored).abs().max() < 0.1
    assert 1e-4 < (exact.evaluate_actions(obs, actions)[1] - scored).abs().max() < 1
    with pytest.raises(ValueError, match="FakeBackbone has no autocast"):
        make_fake(autocast="bfloat16")


def test_training_bfloat16_weights_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_agent.policy.precision.multiplies_bfloat16", lambda: True)  # not on all CPUs
    with pytest.warns(UserWarning, match="trained are bfloat16, in which steps of less than"):
        make_tiny(dtype="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_tiny(dtype="bfloat16", lora={"r": 2})
        make_tiny(autocast="bfloat16")


# --------------------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("target", ["all-linear", "language"])
def test_only_adapters_and_critic_are_trained(target: str) -> None:
    policy, _ = make_tiny(lora={"r": 2, "target": target})
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or name.startswith("value_head.") for name in trained)
    assert any("language_model" in name for name in trained)
    assert any("vision_backbone" in name for name in trained) == (target == "all-linear")
    assert not any("lm_head" in name for name in trained)
    unused = [name.rsplit(".", 1)[0] for name in policy.backbone.unused_parameter_names()]
    assert not any(f"_backbone.{layer}." in name for layer in unused for name in trained)


def test_adapters_start_as_the_model_and_switch_off_to_it() -> None:
    plain, env = make_tiny()
    policy, _ = make_tiny(lora={"r": 4})
    obs, actions = tensors(env), th.randint(256, (4, 7))
    reference = plain.score(obs, actions).log_probs
    th.testing.assert_close(policy.score(obs, actions).log_probs, reference)
    perturb(policy)
    assert (policy.score(obs, actions).log_probs - reference).abs().max() > 0.1
    th.testing.assert_close(policy.reference_log_probs(obs, actions), reference)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in policy.named_parameters() if "lora_" in n or n.startswith("value_head.")}


def test_adapters_are_float32_beside_a_bfloat16_model() -> None:
    policy, env = make_tiny(lora={"r": 2}, dtype="bfloat16")
    dtypes = {name: parameter.dtype for name, parameter in policy.named_parameters()}
    assert all(dtype == th.float32 for name, dtype in dtypes.items() if "lora_" in name or "value_head" in name)
    assert dtypes["_backbone.language_model.lm_head.weight"] == th.bfloat16
    obs = tensors(env)
    actions, _, log_prob = policy(obs)
    values, scored, _ = policy.evaluate_actions(obs, actions)
    (scored.sum() + values.sum()).backward()
    assert log_prob.dtype == scored.dtype == values.dtype == th.float32
    assert (log_prob - scored).abs().max() < 0.3


def test_reference_leaves_frozen_adapters_frozen() -> None:
    policy, env = make_fake(lora={"r": 2})
    frozen = policy._backbone.vision.lora_A.default.weight
    frozen.requires_grad_(False)
    policy.reference_log_probs(tensors(env), th.zeros(4, 7))
    assert not frozen.requires_grad
    assert policy._backbone.vision.lora_B.default.weight.requires_grad


def test_dropout_is_off_in_scoring_during_training() -> None:
    policy, env = make_fake(lora={"r": 2, "dropout": 0.9})
    perturb(policy)
    policy.set_training_mode(True)
    obs, actions = tensors(env), th.zeros(4, 7)
    assert th.equal(policy.evaluate_actions(obs, actions)[1], policy.evaluate_actions(obs, actions)[1])
    assert policy.value_head.training


def test_a_model_is_adapted_once() -> None:
    env, backbone = fake_env(1), FakeBackbone()
    arguments: list[Any] = [env.observation_space, env.action_space, lambda _: 1e-3, backbone]
    VLAPolicy(*arguments, lora={"r": 2})
    with pytest.raises(ValueError, match="has adapters already"):
        VLAPolicy(*arguments, lora={"r": 2})


def test_reference_without_adapters_is_refused() -> None:
    policy, env = make_fake()
    with pytest.raises(ValueError, match="Use lora"):
        policy.reference_log_probs(tensors(env), th.zeros(4, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 8}, "Unknown lora settings"), ({"r": 0}, "at least 1"), ({"target": "vision"}, "Choices")],
)
def test_bad_lora_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_fake(lora=settings)


# ----------------------------------------------------------------------------------------------- bad input


def changed(**parts: Any) -> spaces.Dict:
    own = dict(fake_env(1).observation_space.spaces)
    return spaces.Dict({key: space for key, space in (own | parts).items() if space is not None})


BINS = spaces.MultiDiscrete([256] * 7)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (changed(), spaces.Box(-1, 1, (7,)), "make_vec_env, which decodes bins"),
        (changed(), spaces.MultiDiscrete([255] * 7), "must have 256 bins"),
        (changed(), spaces.MultiDiscrete([256] * 14), "gives 7 action tokens, but the environment takes 14"),
        (spaces.Box(0, 255, (16, 16, 3), np.uint8), BINS, "needs a Dict"),
        (changed(input_ids=None), BINS, "lack input_ids"),
        (changed(image=None), BINS, "lack image"),
        (changed(instruction=spaces.Text(10)), BINS, "'instruction' is text"),
        (changed(extra=spaces.Dict({})), BINS, "'extra' is nested"),
        (changed(image=spaces.Box(0, 255, (20, 20, 3), np.uint8)), BINS, r"takes uint8 \(16, 16, 3\)"),
        (changed(image=spaces.Box(0, 1, (16, 16, 3), np.float32)), BINS, "takes uint8"),
    ],
)
def test_spaces_that_cannot_be_served(observation_space: Any, action_space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLAPolicy(observation_space, action_space, lambda _: 1e-3, FakeBackbone())


def test_missing_camera_and_other_arguments() -> None:
    env = fake_env(1)
    two = FakeBackbone(config=FakeConfig(num_images=2))
    with pytest.raises(ValueError, match="reads wrist_image"):
        VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, two)
    with pytest.raises(ValueError, match="Unknown dtype 'bf15'"):
        make_fake(dtype="bf15")
    with pytest.raises(ValueError, match="use_sde"):
        make_fake(use_sde=True)
    with pytest.raises(ValueError, match="no checkpoint folder"):
        VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, "no-such-model")
    with pytest.raises(NotImplementedError, match=r"VLAPPO\.save"):
        make_fake()[0].save("policy.pt")


def test_plain_sb3_ppo_trains_it_too() -> None:
    """It is an SB3 policy: SB3's own PPO transposes the images and uses its interface alone."""
    kwargs: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 1, "learning_rate": 1e-3, "seed": 0}
    kwargs |= {"normalize_advantage": False, "device": "cpu"}
    theirs = PPO(VLAPolicy, fake_env(4), policy_kwargs={"model": FakeBackbone()}, **kwargs).learn(64)
    ours = VLAPPO(
        VLAPolicy,
        fake_env(4),
        policy_kwargs={"model": FakeBackbone()},
        max_grad_norm=0.5,
        critic_warmup_iterations=0,
        value_learning_rate=1e-3,
        **kwargs,
    ).learn(64)
    assert theirs.observation_space["image"].shape == (3, 16, 16)  # type: ignore[index]
    assert ours.observation_space["image"].shape == (16, 16, 3)  # type: ignore[index]
    for (name, first), second in zip(theirs.policy.named_parameters(), ours.policy.parameters(), strict=True):
        th.testing.assert_close(first, second, atol=1e-6, rtol=1e-5, msg=name)
