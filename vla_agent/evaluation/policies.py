"""Whatever can act in LIBERO, as something with ``predict(obs, deterministic=)`` over `VLAVecEnv`'s observations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_device

from libero_gym.dimensions import CAMERA_KEYS
from vla_agent.action_tokens import to_environment, unnormalize
from vla_agent.actors.interface import is_actor
from vla_agent.actors.loading import load_actor, names_actor
from vla_agent.actors.playing import ActorPolicy, ActorProcessor
from vla_agent.backbone import VLABackbone, is_backbone, model_inputs
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.policy.arguments import check_device
from vla_agent.policy.checks import check_fit
from vla_agent.policy.loading import load_backbone, load_processor
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.choosing import choose_save, is_run_folder

logger = logging.getLogger(__name__)


class RegressionPolicy:
    """A backbone with a continuous head, which gives actions for `VLAVecEnv.step_actions` instead of bins.

    Args:
        model: The backbone.
        env: The environments.
        unnorm_key: Key of the checkpoint's statistics that un-normalise the actions; None takes the only one.

    Raises:
        ValueError: If the model cannot serve the environments' spaces.
    """

    def __init__(self, model: VLABackbone, env: VLAVecEnv, unnorm_key: str | None) -> None:
        check_fit(model, cast(Any, env.observation_space), cast(Any, env.action_space))
        self.model = model
        self.unnorm_key = unnorm_key
        self.stats = model.processor.action_stats(unnorm_key)

    def predict(self, obs: dict[str, np.ndarray], deterministic: bool = True) -> tuple[np.ndarray, None]:
        """Actions as the environments take them, float64 (n_envs, chunk, 7); nothing is drawn."""
        model = self.model
        ids, mask = (th.from_numpy(obs[key]).to(model.device) for key in ("input_ids", "attention_mask"))
        images = [obs[key] for key in CAMERA_KEYS[: model.config.num_images]]
        inputs = model_inputs(model, ids, mask, images, obs.get("state"), self.unnorm_key)
        normalized = model.regress_actions(**inputs).cpu().numpy()
        return to_environment(unnormalize(normalized, self.stats)), None


class Subject(NamedTuple):
    """A model to evaluate, and where it comes from.

    Attributes:
        model: The model.
        name: Name that the caller gave, or the save that stands for the run's folder that the caller gave; None if the
            caller gave an object.
        folder: Folder that the model was read from; None if the caller gave an object.
        choice: Which save of a run it is, as one sentence; None if the caller gave no run's folder.
    """

    model: Any
    name: str | None = None
    folder: Path | None = None
    choice: str | None = None


def load_subject(model: Any, device: th.device | str = "auto", replan_steps: int | None = None) -> Subject:
    """The model itself, or what is meant by its name: a learner, a backbone, or one of `load_actor`'s policies.

    A run's folder, such as "runs/ppo", stands for its best save, and for its newest if it was never evaluated.

    Args:
        model: The model, or its name.
        device: Device that a model is loaded to.
        replan_steps: See `load_actor`.

    Raises:
        CheckpointError: If there is no such checkpoint.
        RunError: If there is no whole save in a run's folder.
        PolicyError: If a policy of another kind cannot be had.
        ValueError: If ``replan_steps`` is given for a model that has its own number, or torch knows no such device.
        TypeError: If it cannot act.
    """
    if names_actor(model):
        actor = load_actor(model, device, replan_steps)
        return Subject(actor, model, getattr(actor, "folder", None))
    if replan_steps is not None:
        raise ValueError(
            f"replan_steps={replan_steps!r} is for policies that are named, such as ws://host:port or lerobot:folder; "
            "leave it out."
        )
    if isinstance(model, (str, Path)):
        from vla_agent.algorithms.loading import load_learner
        from vla_agent.openvla.files import resolve_folder
        from vla_agent.runs.run_files import find, is_run

        check_device("device", device)
        choice = None
        if is_run_folder(model):
            model, choice = choose_save(model)
            logger.info("%s", choice)
        if is_run(model) or Path(model).is_file():
            found = find(model)
            return Subject(load_learner(found, device), str(model), found if found.is_dir() else None, choice)
        folder = resolve_folder(model, weights=True)
        # By its name and not the folder: "v01" in a hub id selects the prompt.
        return Subject(load_backbone(model, device=get_device(device)), str(model), folder)
    if not is_backbone(model) and not is_actor(model) and not callable(getattr(model, "predict", None)):
        raise TypeError(
            f"A {type(model).__name__} cannot be evaluated; give a VLAPPO, a checkpoint, an OpenVLA, an object with "
            "predict(obs, deterministic), or one with act(observations, env_ids)."
        )
    return Subject(model)


def close_subject(subject: Subject) -> None:
    """Close a policy that was loaded by its name, if it has something to close."""
    if subject.name is not None and is_actor(subject.model) and hasattr(subject.model, "close"):
        subject.model.close()


def processor_of(model: Any, default: Any) -> Any:
    """The model's own processor; ``default`` if it has none, loaded if that is the name of a checkpoint."""
    if is_actor(model):
        return ActorProcessor(model)
    backbone = getattr(getattr(model, "policy", None), "backbone", model)
    own = getattr(backbone, "processor", None)  # any object that acts may have one
    if callable(getattr(own, "codec", None)):
        return own
    return load_processor(default) if isinstance(default, (str, Path)) else default


def as_policy(model: Any, env: VLAVecEnv, unnorm_key: str | None) -> Any:
    """Something with ``predict(obs, deterministic=)`` for these environments.

    Raises:
        ValueError: If the model cannot serve the environments' spaces.
    """
    if is_actor(model):
        return ActorPolicy(model, env)
    if is_backbone(model) and model.abilities.regresses_actions:
        return RegressionPolicy(model, env, unnorm_key)
    if is_backbone(model):
        spaces = (env.observation_space, env.action_space)
        return VLAPolicy(*spaces, lambda _: 0.0, model=cast(Any, model), unnorm_key=unnorm_key)
    if isinstance(getattr(model, "policy", None), VLAPolicy):  # a learner, or what chooses among its candidates
        check_fit(model.policy.backbone, cast(Any, env.observation_space), cast(Any, env.action_space))
        return model
    if getattr(model, "action_space", env.action_space) != env.action_space:
        raise ValueError(f"The model's actions are {model.action_space}, but the environment takes {env.action_space}.")
    wanted = getattr(getattr(model, "observation_space", None), "spaces", {})
    missing = [key for key in wanted if key not in cast(Any, env.observation_space).spaces]
    if missing:
        raise ValueError(f"The model reads {', '.join(missing)}, which the observations lack; add the camera or state.")
    return model
