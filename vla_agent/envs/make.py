"""Environments of a registered id for a policy with a given model: which images, which chunk, which reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import gymnasium as gym
import numpy as np

from libero_gym.common.checks import whole_number
from vla_agent.backbone import BackboneProcessor
from vla_agent.envs.arguments import check_arguments, check_keywords
from vla_agent.envs.suites import id_of
from vla_agent.envs.vec_env import ImageTransform, VLAVecEnv
from vla_agent.policy.loading import load_processor
from vla_agent.process_reward import RewardModel, VecProcessReward

# Published models take 224 pixels, and the evaluation protocol renders 256 for them.
PUBLISHED_IMAGE_SIZE, PUBLISHED_RENDER_SIZE = 224, 256


@overload
def make_vec_env(
    env_id: str, n_envs: int = 1, *, reward: Literal["process"], model: Any = ..., **kwargs: Any
) -> VecProcessReward: ...


@overload
def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    *,
    reward: Literal["sparse", "progress"] = "sparse",
    model: str | Path | BackboneProcessor = "tiny",
    **kwargs: Any,
) -> VLAVecEnv: ...


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    *,
    model: str | Path | BackboneProcessor = "tiny",
    chunk_size: int | None = None,
    reward: Literal["sparse", "progress", "process"] = "sparse",
    reward_model: str | Path | RewardModel | None = None,
    reward_kwargs: Mapping[str, Any] | None = None,
    unnorm_key: str | None = None,
    seed: int | None = None,
    image_transform: ImageTransform | Literal["auto"] | None = "auto",
    center_crop: bool = True,
    **env_kwargs: Any,
) -> VLAVecEnv | VecProcessReward:
    """Make environments of a registered id, ready for a policy with this model.

    Args:
        env_id: The id, such as "LIBERO-Spatial-v0"; or a BDDL file, or a folder of such.
        n_envs: Number of environments that run side by side.
        model: The policy's model: "tiny", a checkpoint folder or a hub id, whose weights are not read here; or the
            processor of a model that is loaded already.
        chunk_size: Actions per step, executed open-loop; the model's own number by default.
        reward: "sparse" rewards success; "progress" adds privileged shaping; "process" adds a reward model's scores of
            the frames, by `VecProcessReward`.
        reward_model: Reward model for "process": a scorer's folder, or any `RewardModel`.
        reward_kwargs: Arguments of `VecProcessReward` for "process", such as ``mode`` and ``weight``.
        unnorm_key: Key of the checkpoint's statistics that decode the actions; None takes the only one.
        seed: Seed of the environments.
        image_transform: Function of each batch of images, uint8 (n_envs, H, W, 3). "auto" does nothing if the
            environment renders what the model takes, and otherwise follows the published evaluation: JPEG, Lanczos
            resize, centre crop.
        center_crop: Whether "auto" crops. Right for checkpoints trained with random crops, as the published ones were.
        **env_kwargs: Further arguments of the environments. ``image_size`` is 256 for models that take 224 pixels and
            otherwise what the model takes; ``cameras`` are by default as many as the model reads.

    Raises:
        ValueError: If an argument is out of range or does not fit the model; no worker is started then.
        TypeError: If the environments do not take an argument.
    """
    import libero_gym  # noqa: F401 - registers the ids, where Gymnasium's plugin has not

    env_id = id_of(env_id)
    check_arguments(env_id, n_envs, model, reward, unnorm_key, seed, image_transform, center_crop)
    if chunk_size is not None:
        whole_number("chunk_size", chunk_size, 1)
    check_keywords(env_id, env_kwargs, make_vec_env)
    process = _process_reward(reward, reward_model, reward_kwargs)
    processor = load_processor(model) if isinstance(model, (str, Path)) else model
    size = processor.image_size
    env_kwargs.setdefault("image_size", PUBLISHED_RENDER_SIZE if size == PUBLISHED_IMAGE_SIZE else size)
    if processor.config.num_images > 1:
        env_kwargs.setdefault("cameras", ("agentview", "wrist"))
    own_chunk = processor.config.action_chunk_size
    if chunk_size is not None and chunk_size != own_chunk:
        name = f"model '{model}'" if isinstance(model, (str, Path)) else "the model"
        raise ValueError(f"chunk_size={chunk_size}, but {name} decides {own_chunk} actions at a time.")
    if image_transform == "auto":
        same = env_kwargs["image_size"] == size
        image_transform = None if same else published_transform(size, center_crop)
    processor.codec(unnorm_key)  # complains before workers start
    venv = gym.make_vec(
        env_id,
        num_envs=n_envs,
        vectorization_mode="vector_entry_point",
        chunk_size=own_chunk,
        reward="sparse" if process else reward,
        **env_kwargs,
    )
    try:
        name_of_model = model if isinstance(model, (str, Path)) else None
        env = VLAVecEnv(venv, processor, unnorm_key=unnorm_key, image_transform=image_transform, model=name_of_model)
        wrapped = process(env) if process else env
    except BaseException:
        venv.close()  # its workers would outlive the error
        raise
    if seed is not None:
        env.seed(seed)
    return wrapped


def _process_reward(
    reward: str, model: str | Path | RewardModel | None, kwargs: Mapping[str, Any] | None
) -> Callable[[VLAVecEnv], VecProcessReward] | None:
    """The function that wraps environments in a process reward; None if the reward is another one.

    Raises:
        ValueError: If a model is given but not used, or needed but not given.
    """
    if reward != "process":
        if model is not None or kwargs is not None:
            raise ValueError(f"reward_model and reward_kwargs are for reward='process', and reward is {reward!r}.")
        return None
    from vla_agent.process_reward import load_reward_model

    if model is None:
        raise ValueError("reward='process' needs reward_model: a scorer's folder, or a RewardModel.")
    found = load_reward_model(model) if isinstance(model, (str, Path)) else model
    return lambda env: VecProcessReward(env, found, **(kwargs or {}))


def published_transform(size: int, center_crop: bool) -> ImageTransform:
    """The image path of OpenVLA's LIBERO evaluation, without its rotation: the environments have rotated already.

    Args:
        size: Side of the images that the model takes, in pixels.
        center_crop: Whether the path ends with the centre crop.
    """
    from vla_agent.openvla import image

    def transform(images: np.ndarray) -> np.ndarray:
        resized = image.libero_image(images, rotate=False, size=size)
        return image.center_crop(resized) if center_crop else resized

    return transform
