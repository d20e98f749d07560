"""Every wrong argument of the agent is told in one sentence, before a model is read or a worker starts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, FakeVectorEnv, fake_env
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import VectorEnv
from learners import make_model
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecTransposeImage

from vla_agent import VLAPPO, VLAPolicy, VLAVecEnv, make_vec_env
from vla_agent.callbacks.curriculum import Curriculum
from vla_agent.callbacks.success import LearningCurve, SuccessCallback
from vla_agent.policy.arguments import check_device
from vla_agent.process_reward import VecProcessReward

NAN = float("nan")


def short(part: Any, length: int) -> str:
    """A test's name for a value; without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(part))[:length]


def falling(value: Any) -> Callable[[float], Any]:
    """A schedule that gives a value in the second half of training."""
    return lambda remaining: 0.1 if remaining > 0.5 else value


# ------------------------------------------------------------------------------------------- VLAPPO(...)

ALGORITHM: list[tuple[dict[str, Any], str]] = [
    ({"n_epochs": 0}, r"n_epochs=0 is out of range; expected a whole number of at least 1\."),
    ({"n_epochs": -1}, r"n_epochs=-1 is out of range"),
    ({"n_epochs": True}, r"n_epochs=True; expected a whole number"),
    ({"n_steps": 0}, r"n_steps=0 is out of range"),
    ({"n_steps": 2.5}, r"n_steps=2\.5; expected a whole number"),
    ({"n_steps": "8"}, r"n_steps='8'; expected a whole number"),
    ({"batch_size": 0}, r"batch_size=0 is out of range"),
    ({"batch_size": -4}, r"batch_size=-4 is out of range"),
    ({"batch_size": 1, "normalize_advantage": True}, r"batch_size=1 leaves nothing to normalise; give 2 or more"),
    ({"gamma": 1.5}, r"gamma=1\.5 is out of range; expected a number from 0 to 1\."),
    ({"gamma": -1}, r"gamma=-1 is out of range"),
    ({"gamma": True}, r"gamma=True; expected a number from 0 to 1\."),
    ({"gamma": None}, r"gamma=None; expected a number"),
    ({"gae_lambda": 2}, r"gae_lambda=2 is out of range"),
    ({"learning_rate": -1e-4}, r"learning_rate=-0\.0001 is out of range; expected a number of at least 0\."),
    ({"learning_rate": NAN}, r"learning_rate=nan; expected a number"),
    ({"learning_rate": "fast"}, r"learning_rate='fast'; expected a number"),
    ({"learning_rate": falling(-1.0)}, r"learning_rate at the remaining share 0\.5=-1\.0 is out of range"),
    ({"learning_rate": lambda: 1.0}, r"The schedule learning_rate at the remaining share 1 fails: TypeError"),
    ({"learning_rate": lambda remaining: "x"}, r"The schedule learning_rate at the remaining share 1 fails: Value"),
    ({"value_learning_rate": -1}, r"value_learning_rate=-1 is out of range"),
    ({"value_learning_rate": falling(NAN)}, r"value_learning_rate at the remaining share 0\.5=nan; expected"),
    ({"clip_range": -0.2}, r"clip_range=-0\.2 is out of range; expected a number above 0\."),
    ({"clip_range": 0}, r"clip_range=0 is out of range; expected a number above 0\."),
    ({"clip_range": None}, r"clip_range=None; expected a number above 0\."),
    ({"clip_range": falling(-0.2)}, r"clip_range at the remaining share 0\.5=-0\.2 is out of range"),
    ({"clip_range": falling(NAN)}, r"clip_range at the remaining share 0\.5=nan"),
    ({"clip_range_vf": -1.0}, r"clip_range_vf=-1\.0 is out of range; expected a number above 0\."),
    ({"max_grad_norm": -1}, r"max_grad_norm=-1 is out of range; expected a number above 0\."),
    ({"max_grad_norm": 0}, r"max_grad_norm=0 is out of range"),
    ({"max_grad_norm": "inf"}, r"max_grad_norm='inf'; expected a number"),
    ({"target_kl": -1}, r"target_kl=-1 is out of range; expected a number above 0\."),
    ({"ent_coef": NAN}, r"ent_coef=nan; expected a number\."),
    ({"ent_coef": "auto"}, r"ent_coef='auto'; expected a number\."),
    ({"vf_coef": -0.5}, r"vf_coef=-0\.5 is out of range"),
    ({"normalize_advantage": "no"}, r"normalize_advantage='no'; expected True or False\."),
    ({"bootstrap_time_limits": 1}, r"bootstrap_time_limits=1; expected True or False\."),
    ({"use_sde": "no"}, r"use_sde='no'; expected True or False\."),
    ({"use_sde": True}, r"use_sde=True needs continuous actions"),
    ({"seed": -1}, r"seed=-1 is out of range; expected a whole number from 0"),
    ({"seed": 1.5}, r"seed=1\.5; expected a whole number"),
    ({"device": "tpu"}, r"device='tpu' is no device that torch can use here; expected 'auto', 'cpu', 'cuda'"),
    ({"device": "meta"}, r"device='meta' is no device that torch can use here"),
    ({"device": 2.5}, r"device=2\.5 is no device that torch can use here"),
    ({"verbose": 7}, r"verbose=7 is out of range; expected a whole number from 0 to 2\."),
    ({"stats_window_size": 0}, r"stats_window_size=0 is out of range"),
    ({"tensorboard_log": 5}, r"tensorboard_log=5; expected a folder, as str or Path\."),
    (
        {"rollout_buffer_class": dict},
        r"rollout_buffer_class=<class 'dict'>; expected a subclass of SB3's RolloutBuffer",
    ),
    ({"rollout_buffer_kwargs": [1]}, r"rollout_buffer_kwargs=\[1\]; expected a dict"),
    ({"n_value_epochs": -1}, r"^n_value_epochs=-1 is out of range; expected a whole number of at least 0\.$"),
    ({"n_value_epochs": 1.0}, r"n_value_epochs=1\.0; expected a whole number"),
    ({"policy_warmup_iterations": -1}, r"^policy_warmup_iterations=-1 is out of range"),
    ({"critic_warmup_iterations": -1}, r"^critic_warmup_iterations=-1 is out of range"),
    ({"critic_warmup_iterations": "5"}, r"critic_warmup_iterations='5'; expected a whole number"),
    ({"value_gae_lambda": 1.1}, r"^value_gae_lambda=1\.1 is out of range; expected a number from 0 to 1\.$"),
    ({"kl_ref_coef": -1}, r"^kl_ref_coef=-1 is out of range"),
    ({"kl_ref_coef": 0.1}, r"kl_ref_coef=0\.1 needs adapters"),
    ({"huber_delta": 0}, r"huber_delta=0 is out of range"),
    ({"ratio_tolerance": -1}, r"ratio_tolerance=-1 is out of range"),
    ({"gradient_accumulation_steps": 2.0}, r"gradient_accumulation_steps=2\.0; expected a whole number"),
    ({"value_loss": "hubber"}, r"Unknown value_loss 'hubber'\. Did you mean 'huber'\?"),
    ({"ratio_level": "tokens"}, r"Unknown ratio_level 'tokens'\. Did you mean 'token'\?"),
]


@pytest.mark.parametrize(("kwargs", "sentence"), ALGORITHM, ids=lambda part: short(part, 50))
def test_wrong_arguments_of_vlappo(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_model(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [kwargs for kwargs, _ in ALGORITHM if set(kwargs) <= {"n_epochs", "gamma", "clip_range", "seed", "batch_size"}],
)
def test_sb3s_own_policies_are_checked_as_well(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        VLAPPO("MlpPolicy", "CartPole-v1", **{"device": "cpu"} | kwargs)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("VLAPolcy", r"Unknown policy 'VLAPolcy'\. Did you mean 'VLAPolicy'\?"),
        (None, r"policy=None; expected a policy class, or one of 'MlpPolicy'"),
        (dict, r"policy=<class 'dict'>; expected a policy class"),
    ],
)
def test_wrong_policies(policy: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VLAPPO(policy, fake_env())


def test_what_is_unusual_but_right_is_taken() -> None:
    model = make_model(max_grad_norm=float("inf"), learning_rate=lambda p: 1e-3 * p, clip_range=lambda p: 0.2 * p)
    model.learn(40)  # whole rollouts: 64, past the end
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert make_model(ent_coef=-0.01, verbose=True, seed=np.int64(3)).ent_coef == -0.01


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="device='cuda', but torch finds no GPU: going on with the CPU"):
        assert make_model(device="cuda").device.type == "cpu"
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"device='cuda:3' is no device .* \(There are 1 GPUs\)"):
        check_device("device", "cuda:3")


# ----------------------------------------------------------------------------------------- policy_kwargs

POLICY: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, r"temperature='hot'; expected a number above 0\."),
    ({"temperature": 0}, r"temperature=0 is out of range; expected a number above 0\."),
    ({"temperature": -1}, r"temperature=-1 is out of range"),
    ({"temperature": NAN}, r"temperature=nan; expected a number"),
    ({"temperature": True}, r"temperature=True; expected a number"),
    ({"top_k": 0}, r"top_k=0 is out of range; expected a whole number of at least 1\."),
    ({"top_k": 2.5}, r"top_k=2\.5; expected a whole number"),
    ({"top_p": 2}, r"top_p=2 is out of range"),
    ({"top_p": 0}, r"top_p=0 is out of range"),
    ({"value_hidden": 256}, r"value_hidden=256; expected a sequence, such as value_hidden=\(256,\)\."),
    ({"value_hidden": (0,)}, r"value_hidden's width=0 is out of range"),
    ({"value_hidden": (2.5,)}, r"value_hidden's width=2\.5; expected a whole number"),
    ({"dtype": "int8"}, r"Unknown dtype 'int8'\. Choices: 'float32', 'bfloat16', 'float16'\."),
    ({"dtype": 16}, r"Unknown dtype 16\. Choices"),
    ({"autocast": "bf15"}, r"Unknown autocast 'bf15'\. Choices"),
    ({"model": None}, r"model=None; expected 'tiny', a checkpoint folder, a hub id, or a VLABackbone\."),
    ({"model": 5}, r"model=5; expected 'tiny'"),
    ({"model": ""}, r"model=''; expected 'tiny'"),
    ({"frozen": "vision"}, r"frozen='vision'; expected a sequence, such as frozen=\('vision',\)\."),
    ({"frozen": (3,)}, r"frozen's element=3; expected a string\."),
    ({"frozen": ("vison",)}, r"frozen names 'vison', which is no child .* Did you mean 'vision'\?"),
    ({"lora": True}, r"lora=True; expected a dict of LoraSettings, lora=\{\} for its defaults\."),
    ({"lora": {"rnk": 8}}, r"Unknown lora settings \['rnk'\]\."),
    ({"lora": {"alfa": 8}}, r"Unknown lora settings \['alfa'\]\. Did you mean 'alpha'\?"),
    ({"lora": {"r": 1.5}}, r"lora r=1\.5; expected a whole number"),
    ({"lora": {"alpha": "x"}}, r"^lora alpha='x'; expected a number above 0\.$"),
    ({"lora": {"dropout": 1}}, r"lora dropout=1 drops everything"),
    ({"lora": {"dropout": -0.1}}, r"^lora dropout=-0\.1 is out of range"),
    ({"lora": {"lm_head": "no"}}, r"lora lm_head='no'; expected True or False\."),
    ({"detach_value": "yes"}, r"detach_value='yes'; expected True or False\."),
    ({"gradient_checkpointing": 1}, r"gradient_checkpointing=1; expected True or False\."),
    ({"cuda_graphs": None}, r"cuda_graphs=None; expected True or False\."),
    ({"unnorm_key": 3}, r"unnorm_key=3; expected a string\."),
    ({"unnorm_key": "fke"}, r"Unknown unnorm_key 'fke'\. Did you mean 'fake'\?"),
    ({"optimizer_class": "adam"}, r"optimizer_class='adam'; expected a class of torch\.optim"),
    ({"optimizer_kwargs": 1e-5}, r"optimizer_kwargs=1e-05; expected a dict"),
    ({"optimizer_kwargs": {"epsilon": 1e-5}}, r"optimizer_kwargs=\{'epsilon': 1e-05\} do not suit Adam: "),
    ({"optimizer_kwargs": {"eps": -1.0}}, r"optimizer_kwargs=\{'eps': -1\.0\} do not suit Adam: "),
    ({"device": "tpu"}, r"device='tpu' is no device that torch can use here"),
    ({"net_arch": [64]}, r"Unknown policy_kwargs 'net_arch'\."),
    ({"temprature": 1}, r"Unknown policy_kwargs 'temprature'\. Did you mean 'temperature'\?"),
    ({"use_sde": True}, r"use_sde=True needs continuous actions"),
]


@pytest.mark.parametrize(("kwargs", "sentence"), POLICY, ids=lambda part: short(part, 50))
def test_wrong_policy_kwargs(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_model(policy_kwargs=kwargs)


def test_policy_kwargs_that_are_no_dict() -> None:
    with pytest.raises(ValueError, match=r"policy_kwargs='tiny'; expected a dict of arguments by name"):
        VLAPPO("VLAPolicy", fake_env(), policy_kwargs="tiny")  # type: ignore[arg-type]


def test_the_policy_checks_for_itself() -> None:
    env = fake_env(1)
    with pytest.raises(ValueError, match="temperature='hot'"):
        VLAPolicy(env.observation_space, env.action_space, lambda _: 1e-3, FakeBackbone(), temperature="hot")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ environments


class TextEnv(gym.Env[dict[str, Any], int]):
    """What `gym.make("LIBERO-...")` gives, as far as SB3 looks."""

    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(0, 1, (2,)), "instruction": gym.spaces.Text(9)})
    action_space = gym.spaces.Discrete(2)


@pytest.mark.parametrize("policy", ["VLAPolicy", "MultiInputPolicy"])
def test_environments_with_text_are_told_of_make_vec_env(policy: str) -> None:
    with pytest.raises(
        ValueError, match=r"shows text \(instruction\), which SB3 cannot take\. Make it with vla_agent\.make"
    ):
        VLAPPO(policy, TextEnv())


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (5, r"env=5; expected an id such as 'LIBERO-Spatial-v0', or what make_vec_env gives\."),
        (None, r"env=None; expected an id"),
        (
            FakeVectorEnv(2),
            r"vector environment with Gymnasium's interface, which SB3 does not take; give vla_agent\.make_vec",
        ),
        ("LIBERO-Spatail-v0", r"Unknown id 'LIBERO-Spatail-v0'\. Did you mean 'LIBERO-Spatial-v0'\?"),
        ("CartPole-v1", r"No instructions come from 'CartPole-v1'\. Ids: LIBERO-"),
    ],
    ids=lambda part: short(part, 20),
)
def test_wrong_environments(env: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VLAPPO("VLAPolicy", env, policy_kwargs={"model": FakeBackbone()})


def test_environments_of_sb3_without_prompts_are_told_of_make_vec_env() -> None:
    with pytest.raises(ValueError, match=r"actions are bins.*Make it with vla_agent\.make_vec_env"):
        VLAPPO("VLAPolicy", gym.make("CartPole-v1"), policy_kwargs={"model": FakeBackbone()})


def test_an_id_makes_the_environments_for_the_policys_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def fake_make_vec(env_id: str, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
        made.append({"id": env_id} | kwargs)
        return FakeVectorEnv(kwargs["num_envs"], size=112)

    monkeypatch.setattr(gym, "make_vec", fake_make_vec)
    model = VLAPPO("VLAPolicy", "LIBERO-Spatial-v0", n_steps=4, batch_size=4, device="cpu")
    assert (made[0]["id"], made[0]["num_envs"], model.n_envs) == ("LIBERO-Spatial-v0", 1, 1)
    assert model.policy.model_id == "tiny"
    model.learn(4)
    closed: list[int] = []
    monkeypatch.setattr(VLAVecEnv, "close", lambda env: closed.append(1))
    with pytest.raises(ValueError, match="no child of the backbone"):
        VLAPPO("VLAPolicy", "LIBERO-Spatial-v0", device="cpu", policy_kwargs={"frozen": ["x"]})
    assert closed == [1]


def test_the_environments_model_is_the_policys_where_it_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vla_agent.openvla import OpenVLA

    OpenVLA.from_pretrained("tiny").save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(gym, "make_vec", lambda *_, num_envs, **kwargs: FakeVectorEnv(num_envs, size=112))
    env = make_vec_env("LIBERO-Spatial-v0", 2, model=tmp_path / "mine")
    assert env.model == tmp_path / "mine"

    class Opinion:
        def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
            return np.zeros(len(images))

    for each in (env, VecProcessReward(env, Opinion())):
        model = VLAPPO("VLAPolicy", each, n_steps=4, batch_size=4, device="cpu", policy_kwargs={"temperature": 0.5})
        assert model.policy.model_id == str(tmp_path / "mine")
        assert model.policy_kwargs["temperature"] == 0.5


def test_sb3s_ppo_takes_the_vector_environment() -> None:
    PPO("MultiInputPolicy", fake_env(2, size=48), n_steps=4, batch_size=4, device="cpu").learn(8)


def test_another_models_environments_cannot_be_set() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="for another model than the policy's"):
        model.set_env(VLAVecEnv(FakeVectorEnv(2), FakeProcessor("other")))
    with pytest.raises(ValueError, match="The environments are 3, but the model has a buffer for 2"):
        model.set_env(fake_env(3))
    with pytest.raises(ValueError, match=r"env=None; expected"):
        model.set_env(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no id; give vla_agent\.make_vec_env\('LIBERO-Goal-v0', n_envs\)"):
        model.set_env("LIBERO-Goal-v0")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- learn

LEARN: list[tuple[dict[str, Any], str]] = [
    ({"total_timesteps": -5}, r"total_timesteps=-5 is out of range; expected a whole number of at least 0\."),
    ({"total_timesteps": 2.5}, r"total_timesteps=2\.5; expected a whole number"),
    ({"total_timesteps": "100"}, r"total_timesteps='100'; expected a whole number"),
    ({"total_timesteps": NAN}, r"total_timesteps=nan; expected a whole number"),
    ({"log_interval": 0}, r"log_interval=0 is out of range"),
    ({"log_interval": 1.5}, r"log_interval=1\.5; expected a whole number"),
    ({"reset_num_timesteps": "no"}, r"reset_num_timesteps='no'; expected True or False\."),
    ({"progress_bar": "yes"}, r"progress_bar='yes'; expected True or False\."),
    ({"tb_log_name": 3}, r"tb_log_name=3; expected a string\."),
    ({"callback": 5}, r"callback=5; expected a BaseCallback, a function of \(locals, globals\), or a list of them\."),
    ({"callback": "success"}, r"callback='success'; expected a BaseCallback"),
    ({"callback": [SuccessCallback(), None]}, r"callback=None; expected a BaseCallback"),
    (
        {"callback": SuccessCallback},
        r"callback=SuccessCallback is a class; give an instance, SuccessCallback\(\.\.\.\)\.",
    ),
]


@pytest.mark.parametrize(("kwargs", "sentence"), LEARN, ids=lambda part: short(part, 50))
def test_wrong_arguments_of_learn(kwargs: dict[str, Any], sentence: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=sentence):
        model.learn(**{"total_timesteps": 32} | kwargs)
    assert model.num_timesteps == 0


def test_learning_takes_round_floats_as_sb3_does() -> None:
    assert make_model().learn(3.2e1).num_timesteps == 32  # type: ignore[arg-type]


def test_learning_without_environments_says_how_to_give_them(tmp_path: Path) -> None:
    make_model().save(tmp_path / "run")
    model = VLAPPO.load(tmp_path / "run", device="cpu", policy_kwargs={"model": FakeBackbone()})
    with pytest.raises(
        ValueError, match=r"no environment to learn in; give VLAPPO\.load\(path, env\), or call set_env"
    ):
        model.learn(32)
    model.set_env(fake_env(2))
    model.learn(32)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SuccessCallback(0), r"window=0 is out of range; expected a whole number of at least 1\."),
        (lambda: SuccessCallback(2.5), r"window=2\.5; expected a whole number"),
        (lambda: LearningCurve("x.png", window=0), r"window=0 is out of range"),
        (lambda: LearningCurve("x.txt"), r"'x\.txt' ends in '\.txt'; expected a picture's name: \.png, "),
        (lambda: LearningCurve(Path(__file__) / "x.png"), r"which is a file; give a picture in a folder\."),
        (lambda: Curriculum("hard"), r"Unknown curriculum mode 'hard'\. Did you mean 'hardest'\?"),
        (lambda: Curriculum(5), r"Unknown curriculum mode 5\."),
        (lambda: Curriculum(tau=0), r"tau=0 is out of range; expected a number above 0\."),
        (lambda: Curriculum(tau="x"), r"tau='x'; expected a number above 0\."),
        (lambda: Curriculum(window=-1), r"window=-1 is out of range"),
    ],
)
def test_wrong_arguments_of_callbacks(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# ----------------------------------------------------------------------------------------------- predict


def observation(**changes: Any) -> dict[str, Any]:
    """Of two environments, changed; None leaves a key out."""
    obs = fake_env(2).reset() | changes
    return {key: value for key, value in obs.items() if value is not None}


PREDICT: list[tuple[Any, str]] = [
    (None, r"The observation is of type NoneType; expected a dict with image, input_ids, attention_mask\."),
    (np.zeros((2, 16, 16, 3)), r"The observation is of type ndarray; expected a dict"),
    (({}, {}), r"of type tuple; expected a dict .* gymnasium's reset\(\) gives a pair; take its first\."),
    ({}, r"The observation lacks image, input_ids, attention_mask; it has nothing\."),
    (observation(input_ids=None), r"The observation lacks input_ids; it has image, state, attention_mask\."),
    (observation(instruction="go"), r"The policy knows no observation 'instruction'; it knows "),
    (
        observation(image=np.zeros((2, 8, 8, 3), np.uint8)),
        r"'image' is uint8 \(2, 8, 8, 3\); expected uint8 \(16, 16, 3\)",
    ),
    (observation(image=np.zeros((2, 16, 16, 3), np.float32)), r"'image' is float32 .* expected uint8"),
    (observation(image="frame.png"), r"'image' is <U9 \(\); expected uint8"),
    (
        observation(input_ids=np.zeros((2, 64))),
        r"'input_ids' is float64 \(2, 64\); expected int64 \(64,\), or a batch \(n, 64\)",
    ),
    (observation(input_ids=np.zeros((2, 9), int)), r"'input_ids' is int64 \(2, 9\); expected int64 \(64,\)"),
    (
        observation(image=np.zeros((16, 16, 3), np.uint8)),
        r"differ in their batch \(image: no batch, state: 2, input_ids: 2",
    ),
    (observation(image=np.zeros((3, 16, 16, 3), np.uint8)), r"differ in their batch \(image: 3, state: 2"),
    (observation(state=np.full((2, 8), NAN)), r"The observation 'state' holds numbers that are not finite\."),
]


@pytest.mark.parametrize(("obs", "sentence"), PREDICT, ids=lambda part: short(part, 30))
def test_wrong_observations_of_predict(obs: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_model().predict(obs)


def test_predict_takes_batches_and_single_observations() -> None:
    model, obs = make_model(), observation()
    batch, _ = model.predict(obs, deterministic=True)
    single, _ = model.predict({key: value[0] for key, value in obs.items()}, deterministic=True)
    assert batch.shape == (2, 7)
    assert single.tolist() == batch[0].tolist()
    with pytest.raises(ValueError, match="deterministic='yes'; expected True or False"):
        model.predict(obs, deterministic="yes")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ make_vec_env


def test_a_wrapped_environment_of_ones_own_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LiberoVectorEnv` makes the environments that it knows, so its rewards would be the wrapper's in name alone."""
    spec = gym.spec("LIBERO-Spatial-v0")
    mine = gym.envs.registration.EnvSpec(
        "Mine-v0", lambda: None, vector_entry_point=spec.vector_entry_point, kwargs=dict(spec.kwargs)
    )
    monkeypatch.setitem(gym.registry, "Mine-v0", mine)
    with pytest.raises(ValueError, match=r"'Mine-v0' makes another environment than LiberoEnv.*VecEnvWrapper of SB3"):
        make_vec_env("Mine-v0", 2, model="tiny")
    mine.vector_entry_point = None
    with pytest.raises(ValueError, match=r"No instructions come from 'Mine-v0'.*VecEnvWrapper of SB3"):
        make_vec_env("Mine-v0", 2, model="tiny")


def test_images_in_the_models_order_are_not_for_sb3s_networks() -> None:
    with pytest.raises(ValueError, match=r"channels last\. For SB3's policies, put SB3's VecTransposeImage around"):
        VLAPPO("MultiInputPolicy", fake_env(2, size=48), n_steps=4, batch_size=4)
    env = VecTransposeImage(fake_env(2, size=48))
    VLAPPO("MultiInputPolicy", env, n_steps=4, batch_size=4, device="cpu").learn(8)


MAKE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"env_id": 5}, ValueError, r"env_id=5; expected a registered id, such as 'LIBERO-Spatial-v0'\."),
    ({"env_id": "LIBERO-Sptial-v0"}, ValueError, r"Unknown id .* Did you mean 'LIBERO-Spatial-v0'\?"),
    ({"env_id": "CartPole-v1"}, ValueError, r"No instructions come from 'CartPole-v1'"),
    ({"n_envs": 0}, ValueError, r"n_envs=0 is out of range; expected a whole number from 1 to 10000\."),
    ({"n_envs": True}, ValueError, r"n_envs=True; expected a whole number"),
    ({"n_envs": 10**9}, ValueError, r"n_envs=1000000000 is out of range"),
    ({"n_envs": "2"}, ValueError, r"n_envs='2'; expected a whole number"),
    ({"n_envs": 2.0}, ValueError, r"n_envs=2\.0; expected a whole number"),
    ({"center_crop": "maybe"}, ValueError, r"center_crop='maybe'; expected True or False\."),
    (
        {"image_transform": "crop"},
        ValueError,
        r"image_transform='crop'; expected 'auto', None, or a function of images\.",
    ),
    ({"chunk_size": 8}, ValueError, r"chunk_size=8, but model 'tiny' decides 1 actions at a time\."),
    ({"chunk_size": True}, ValueError, r"chunk_size=True; expected a whole number"),
    ({"chunk_size": 0}, ValueError, r"chunk_size=0 is out of range"),
    (
        {"model": None},
        ValueError,
        r"model=None; expected 'tiny', a checkpoint folder, a hub id, or a model's processor\.",
    ),
    ({"model": "no-such-model"}, ValueError, r"no checkpoint folder"),
    ({"unnorm_key": "bridge"}, ValueError, r"no statistics for unnorm_key 'bridge'"),
    ({"unnorm_key": 7}, ValueError, r"unnorm_key=7; expected a string"),
    ({"seed": -1}, ValueError, r"seed=-1 is out of range"),
    ({"seed": 1.5}, ValueError, r"seed=1\.5; expected a whole number"),
    ({"reward": "dense"}, ValueError, r"Unknown reward 'dense'\..* Choices: 'sparse', 'progress', 'process'\."),
    ({"reward": len}, ValueError, r"reward=<built-in.*; expected 'sparse', .* put a VecEnvWrapper of SB3 around"),
    ({"reward": "process"}, ValueError, r"reward='process' needs reward_model"),
    ({"reward_kwargs": {"weight": 1}}, ValueError, r"are for reward='process'"),
    ({"task_ids": [0]}, TypeError, r"make_vec_env takes no 'task_ids'\. Did you mean 'task_id'\?"),
    ({"num_envs": 2}, TypeError, r"make_vec_env takes no 'num_envs'\. Did you mean 'n_envs'\?"),
    ({"camera_heights": 128}, TypeError, r"takes no 'camera_heights'\. Did you mean 'image_size'\?"),
    ({"max_episode_step": 9}, TypeError, r"Did you mean 'max_episode_steps'\?"),
    ({"suite": "libero_goal"}, TypeError, r"make_vec_env takes no 'suite'\."),
]


@pytest.mark.parametrize(("kwargs", "error", "sentence"), MAKE, ids=lambda part: short(part, 40))
def test_wrong_arguments_of_make_vec_env_are_told_before_workers_start(
    kwargs: dict[str, Any], error: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("Workers were started.")

    monkeypatch.setattr(gym, "make_vec", fail)
    with pytest.raises(error, match=sentence):
        make_vec_env(**{"env_id": "LIBERO-Spatial-v0"} | kwargs)


def test_ours_and_the_environments_arguments_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(gym, "make_vec", lambda *_, **kwargs: seen.update(kwargs) or FakeVectorEnv(2, size=112))
    make_vec_env("LIBERO-Spatial-v0", 2, task_id=[1], n_workers=1, max_episode_steps=9, renderer="fast")
    assert {"task_id": [1], "n_workers": 1, "max_episode_steps": 9, "renderer": "fast"}.items() <= seen.items()


# --------------------------------------------------------------------------------------------- VLAVecEnv


@pytest.mark.parametrize(
    "use",
    [
        lambda env: env.reset(),
        lambda env: env.step(np.zeros((2, 7), int)),
        lambda env: env.env_method("ping"),
        lambda env: env.get_attr("process_id"),
        lambda env: env.begin_episodes({0: {}}),
        lambda env: env.restore({}),
        lambda env: env.get_images(),
    ],
)
def test_a_closed_vector_environment_says_so(use: Callable[[VLAVecEnv], Any]) -> None:
    env = fake_env(2)
    env.reset()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="The environments are closed; make them anew with make_vec_env"):
        use(env)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (
            lambda env: env.restore({}),
            r"Expected what VLAVecEnv\.snapshot\(\) gave, a dict with venv, returns, lengths\.",
        ),
        (lambda env: env.restore(None), r"Expected what VLAVecEnv\.snapshot\(\) gave"),
        (lambda env: env.restore(fake_env(3).snapshot()), r"The snapshot is of 3 environments; these are 2\."),
        (
            lambda env: env.begin_episodes({2: {}}),
            r"environment=2 is out of range; expected a whole number from 0 to 1\.",
        ),
        (
            lambda env: env.env_method("ping", indices=[5]),
            r"index=5 is out of range; expected a whole number from 0 to 1\.",
        ),
        (lambda env: env.get_attr("ping", indices="0"), r"index='0'; expected a whole number"),
    ],
)
def test_wrong_uses_of_the_vector_environment(use: Callable[[VLAVecEnv], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        use(fake_env(2))


def test_an_unknown_instruction_names_its_task_and_the_way_out() -> None:
    env = VLAVecEnv(FakeVectorEnv(1), FakeProcessor(), instructions=["go left"])
    env.venv.generators[0] = type("Fixed", (), {"integers": lambda self, n: 1})()
    with pytest.raises(ValueError, match=re.escape("'go right please' of task 1")) as caught:
        env.reset()
    assert "make_vec_env's task_id" in str(caught.value)


def test_nothing_right_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(policy_kwargs={"lora": {}, "top_k": 5, "top_p": 0.9, "frozen": ["vision"]})


@pytest.mark.parametrize(("name", "nearest"), [("nsteps", "n_steps"), ("learning_rates", "learning_rate")])
def test_an_argument_that_vlappo_does_not_take_is_told_with_the_nearest(name: str, nearest: str) -> None:
    given: dict[str, Any] = {name: 4}
    with pytest.raises(TypeError, match=rf"VLAPPO takes no argument '{name}'\. Did you mean '{nearest}'\? Arguments: "):
        VLAPPO("VLAPolicy", fake_env(2), **given)
