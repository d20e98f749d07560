"""A policy of LeRobot with its saved processors, as an `Actor`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_device

from libero_gym.common.checks import whole_number
from libero_gym.common.version import installed_version
from libero_gym.dimensions import IMAGE_KEYS
from vla_agent.actors.interface import PolicyError
from vla_agent.actors.lerobot_folder import STATE_KEY, PolicyFolder, find_folder, read_folder

# Their select_action is a queue of what predict_action_chunk gives for one observation, and nothing else is remembered.
# So several environments are one batch, and frames are drawn only where a chunk begins.
CHUNKING = ("act", "pi0", "pi05", "pi0_fast", "smolvla")


class LeRobotPolicy:
    """A LeRobot policy that acts in several environments.

    A LeRobot policy keeps a queue of actions, and some keep earlier observations. Kinds of `CHUNKING` are asked for
    whole chunks, in one batch. All others get an object per environment, which share their weights, and are asked at
    every control step, as ``lerobot-eval`` does.

    Args:
        policy: The policy, a ``PreTrainedPolicy``.
        preprocessor: Its pipeline for observations.
        postprocessor: Its pipeline for actions.
        read: What its files say.
        replan_steps: Actions of each chunk that are executed; the policy's ``n_action_steps`` by default.

    Raises:
        ValueError: If ``replan_steps`` is out of the policy's range.
    """

    def __init__(
        self,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
        read: PolicyFolder,
        replan_steps: int | None = None,
    ) -> None:
        self.policy, self.read = policy, read
        self.folder = read.path
        config = policy.config
        ensembles = getattr(config, "temporal_ensemble_coeff", None) is not None
        if replan_steps is not None:
            _replan(config, replan_steps, ensembles)
        self._chunks = read.kind in CHUNKING and not ensembles
        self._processors = (preprocessor, postprocessor)
        self._of_env: dict[int, tuple[Any, Any, Any]] = {}
        self.cameras = tuple(camera for camera in IMAGE_KEYS if camera in read.cameras.values())
        self.image_size = read.image_size
        self.chunk_size = int(config.n_action_steps) if self._chunks else 1
        self.settings = {
            "policy_type": read.kind,
            "replan_steps": int(getattr(config, "n_action_steps", 1)),
            "lerobot": installed_version("lerobot") or "unknown",
        }

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: th.device | str = "auto",
        replan_steps: int | None = None,
        cameras: Mapping[str, str] | None = None,
        trust_remote_code: bool = False,
    ) -> LeRobotPolicy:
        """The policy of a folder, or of a hub id.

        Args:
            path_or_id: Folder that LeRobot saved it to (``.../pretrained_model``), or a hub id.
            device: Device that it computes on.
            replan_steps: Actions of each chunk that are executed; the policy's own number by default.
            cameras: Camera ("agentview", "wrist") by the name of its frames in the policy's observations, where that is
                none of the usual.
            trust_remote_code: Whether Python files that come with the policy, or with what it names on the hub, may
                run. pi0-FAST's tokenizer is one.

        Raises:
            ImportError: If LeRobot is not installed.
            PolicyError: If there is no such policy, or it is for another robot, or LeRobot cannot load it.
            ValueError: If ``replan_steps`` is out of the policy's range.
        """
        read = read_folder(find_folder(path_or_id), cameras)
        try:
            from lerobot.configs.policies import PreTrainedConfig
            from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        except ImportError as error:
            raise ImportError(
                "A policy of LeRobot needs the package lerobot, of which 0.6.1 on Python 3.12 goes together with this "
                f"one: pip install 'lerobot[dataset]==0.6.1' ({error})."
            ) from error
        folder, where = str(read.path), str(get_device(device))
        moved = {"device_processor": {"device": where}} if "device_processor" in read.steps else {}
        try:
            config = PreTrainedConfig.from_pretrained(folder)
            config.device = where
            if hasattr(config, "pretrained_backbone_weights"):
                config.pretrained_backbone_weights = None  # they would be downloaded, and replaced by the folder's
            with contextlib.nullcontext() if trust_remote_code else no_foreign_code():
                policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
                before, after = make_pre_post_processors(config, folder, preprocessor_overrides=moved)
        except PolicyError:
            raise
        except Exception as error:  # LeRobot and what it builds on raise many kinds
            raise PolicyError(
                f"LeRobot cannot load the policy in '{folder}' ({type(error).__name__}: {str(error)[:300]})."
            ) from error
        return cls(policy, before, after, read, replan_steps)

    def reset(self, env_ids: Sequence[int]) -> None:
        """Empty the queues of these environments."""
        if not self._chunks:
            for env_id in env_ids:
                self._object_of(env_id)[0].reset()

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        """Actions, float64 (n, chunk_size, 7); see `Actor`."""
        with th.inference_mode(), self._precision():
            if self._chunks:
                self.policy.reset()  # a policy may keep its observation in a queue, whose batch was another
                return self._chunk(observations)
            rows = [
                self._single(
                    self._object_of(env_id), {key: values[row : row + 1] for key, values in observations.items()}
                )
                for row, env_id in enumerate(env_ids)
            ]
            return np.concatenate(rows)[:, None]

    def batch(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """Observations as ``lerobot-eval`` hands them to the preprocessor: frames float32 (n, 3, H, W) in [0, 1]."""
        batch: dict[str, Any] = {"task": list(observations["instruction"])}
        for key, camera in self.read.cameras.items():
            frames = th.from_numpy(np.ascontiguousarray(observations[IMAGE_KEYS[camera]]))
            batch[key] = frames.permute(0, 3, 1, 2).contiguous().float() / 255
        if self.read.reads_state:
            batch[STATE_KEY] = th.from_numpy(np.array(observations["state"], dtype=np.float32))
        return batch

    def _chunk(self, observations: Mapping[str, Any]) -> np.ndarray:
        before, after = self._processors
        chunk = self.policy.predict_action_chunk(before(self.batch(observations)))
        # One by one, as lerobot-eval does: a pipeline's steps know actions of shape (n, 7).
        actions = [after(chunk[:, step]) for step in range(self.chunk_size)]
        return th.stack(actions, dim=1).double().cpu().numpy()

    def _single(self, own: tuple[Any, Any, Any], observations: Mapping[str, Any]) -> np.ndarray:
        policy, before, after = own
        return after(policy.select_action(before(self.batch(observations)))).double().cpu().numpy()

    def _object_of(self, env_id: int) -> tuple[Any, Any, Any]:
        """The policy and the processors of an environment; copies share their weights."""
        if env_id not in self._of_env:
            shared = {id(tensor): tensor for tensor in (*self.policy.parameters(), *self.policy.buffers())}
            self._of_env[env_id] = copy.deepcopy((self.policy, *self._processors), dict(shared))
        return self._of_env[env_id]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        config = self.policy.config
        mixed = getattr(config, "use_amp", False)
        return th.autocast(th.device(config.device).type) if mixed else contextlib.nullcontext()


@contextlib.contextmanager
def no_foreign_code() -> Iterator[None]:
    """Inside, transformers imports no Python file of a checkpoint.

    LeRobot's pi0-FAST, GR00T, Wall-X and its step that tokenizes actions pass ``trust_remote_code=True``, for names
    that stand in the policy's own files. transformers runs such a file in one function, which two modules call.
    """
    from transformers import dynamic_module_utils
    from transformers.generation import utils

    def refuse(class_name: str, module_path: str, *_: Any, **__: Any) -> Any:
        raise PolicyError(
            f"The policy would run Python code that comes with it ({class_name} of {module_path}). If you trust it, "
            "load it by LeRobotPolicy.from_pretrained(folder, trust_remote_code=True) and evaluate that object."
        )

    places: list[Any] = [dynamic_module_utils, utils]
    own = [place.get_class_in_module for place in places]
    try:
        for place in places:
            place.get_class_in_module = refuse
        yield
    finally:
        for place, function in zip(places, own, strict=True):
            place.get_class_in_module = function


def _replan(config: Any, steps: int, ensembles: bool) -> None:
    """Have a policy execute another number of actions of each chunk."""
    longest = getattr(config, "chunk_size", getattr(config, "n_action_steps", 1))
    if ensembles:
        raise ValueError(
            "The policy averages its chunks at every step (temporal_ensemble_coeff); leave replan_steps out."
        )
    if not hasattr(config, "n_action_steps"):
        raise ValueError(f"A {config.type} policy has no chunks; leave replan_steps out.")
    config.n_action_steps = whole_number("replan_steps", steps, 1, int(longest))
