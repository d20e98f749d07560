"""Policies that decide chunks, a control step at a time: as `libero_gym.demonstrations.record` plays and films them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np
import torch as th

from libero_gym.common.checks import flag, real_number, whole_number
from libero_gym.dimensions import CAMERA_KEYS, IMAGE_KEYS
from vla_agent.action_tokens import to_environment, unnormalize
from vla_agent.actors.interface import cameras_of, checked_actions, chunk_size_of, image_size_of, is_actor
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.bins import PLAIN, Sampling
from vla_agent.common.hashes import fingerprint
from vla_agent.envs.make import PUBLISHED_IMAGE_SIZE, PUBLISHED_RENDER_SIZE, published_transform
from vla_agent.evaluation.policies import Subject, load_subject
from vla_agent.evaluation.provenance import describe_model
from vla_agent.test_time.loading import scorer_by_name
from vla_agent.test_time.scorers import Question, candidate_policy, choose

Observation = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StepwisePolicy:
    """A policy by its name, as `libero_gym.demonstrations.record` takes it: called for each episode.

    What it gives is a function from an observation to an action (7,). The function asks the policy for a chunk, hands
    its actions out one by one, whatever is seen meanwhile, and asks again when none is left. So an episode is the one
    that an evaluation plays chunk by chunk, with the frames between two decisions. It is pickled without weights: each
    worker process loads the model for itself.

    Args:
        model: What `libero-vla evaluate` takes as ``--model`` or ``--policy``.
        sample: Whether actions are drawn, and not the likeliest ones. What is drawn depends on the episode's seed.
        temperature: Temperature of actions that are drawn; None for the run's own, and 1 for a checkpoint.
        unnorm_key: Key of the checkpoint's action statistics; None takes the only one.
        device: Device of the model.
        best_of_n: Candidates of each decision, of which the best by ``scorer`` is executed; see
            `vla_agent.test_time.BestOfN`. Without ``sample`` the likeliest is among them.
        scorer: Name of what chooses; no oracle.

    Raises:
        ScorerError: If there is no such scorer.
        ValueError: If a temperature is no number above 0, or nothing is drawn.
    """

    model: str
    sample: bool = False
    temperature: float | None = None
    unnorm_key: str | None = None
    device: str = "auto"
    best_of_n: int = 1
    scorer: str = "agreement"

    def __post_init__(self) -> None:
        flag("sample", self.sample)
        whole_number("best_of_n", self.best_of_n, 1)
        scorer_by_name(self.scorer)
        if self.temperature is not None:
            if not self.sample and self.best_of_n == 1:
                raise ValueError(
                    f"temperature={self.temperature!r} is for actions that are drawn, and these are the likeliest; add "
                    "sample=True (--sample), or leave the temperature out."
                )
            real_number("temperature", self.temperature, above=0)

    def __call__(self, env: Any) -> Callable[[Observation], np.ndarray]:
        """The policy of an episode that an environment has just begun."""
        seed = int(env.unwrapped.np_random.integers(2**63))
        return _Remembering(_loaded(self).begin(seed))

    @property
    def name(self) -> str:
        """What tells its actions from another policy's: the name, a hash of its files, and how actions are drawn."""
        return _loaded(self).name

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose frames it reads, by `LiberoEnv`'s names."""
        return _loaded(self).cameras

    @property
    def image_size(self) -> int:
        """Side of the rendered frames in pixels."""
        return _loaded(self).image_size


class _Remembering:
    """Gives the actions of a chunk one after the other.

    Args:
        decide: Function from an observation to a chunk of actions, (n, 7).
    """

    def __init__(self, decide: Callable[[Observation], np.ndarray]) -> None:
        self._decide = decide
        self._left: deque[np.ndarray] = deque()

    def __call__(self, obs: Observation) -> np.ndarray:
        if not self._left:
            self._left.extend(self._decide(obs))
        return self._left.popleft()


class _Loaded(Protocol):
    """A policy that is loaded, of whatever kind."""

    name: str
    cameras: tuple[str, ...]
    image_size: int

    def begin(self, seed: int) -> Callable[[Observation], np.ndarray]:
        """What decides the chunks of an episode, given the seed of its random numbers."""


@functools.lru_cache(maxsize=1)
def _loaded(policy: StepwisePolicy) -> _Loaded:
    """The policy that is meant; the last one stays loaded, because a recording has one."""
    subject = load_subject(policy.model, policy.device)
    files = json.dumps(describe_model(subject.model, subject.name, subject.folder), sort_keys=True, default=str)
    name = f"{policy.model} ({fingerprint([files.encode()])})"
    return _ActorSteps(subject.model, policy, name) if is_actor(subject.model) else _ModelSteps(subject, policy, name)


class _ModelSteps:
    """Decisions of a backbone, one environment at a time.

    Args:
        subject: The model, or the run that has it.
        policy: How it decides.
        name: Its name.

    Raises:
        ValueError: If the checkpoint has no such statistics.
    """

    def __init__(self, subject: Subject, policy: StepwisePolicy, name: str) -> None:
        learner = getattr(subject.model, "policy", None)
        self._backbone = cast(VLABackbone, getattr(learner, "backbone", subject.model))
        self._unnorm_key = policy.unnorm_key or getattr(learner, "unnorm_key", None)
        own: Sampling = getattr(learner, "sampling", PLAIN)
        temperature = own.temperature if policy.temperature is None else policy.temperature
        self._sampling = dataclasses.replace(own, deterministic=not policy.sample, temperature=temperature)
        self.name = f"{name}, drawn at temperature {temperature:g}" if policy.sample else f"{name}, greedy"
        self._n, self._scorer = policy.best_of_n, None
        if policy.best_of_n > 1:
            chooser = SimpleNamespace(backbone=self._backbone, unnorm_key=self._unnorm_key)
            self._scorer = scorer_by_name(policy.scorer)(candidate_policy(chooser), None)
            drawn = "all" if policy.sample else "others than the likeliest"
            weights = getattr(self._scorer, "weights_hash", None)
            told = policy.scorer if weights is None else f"{policy.scorer} ({weights})"
            self.name = f"{name}, best of {self._n} by {told}, {drawn} drawn at temperature {temperature:g}"
        processor = self._backbone.processor
        self._codec = processor.codec(self._unnorm_key)
        n_images, size = self._backbone.config.num_images, processor.image_size
        self._keys = CAMERA_KEYS[:n_images]
        self.cameras = tuple(camera for camera, key in IMAGE_KEYS.items() if key in self._keys)
        self.image_size = PUBLISHED_RENDER_SIZE if size == PUBLISHED_IMAGE_SIZE else size
        self._transform = None if self.image_size == size else published_transform(size, center_crop=True)

    def begin(self, seed: int) -> Callable[[Observation], np.ndarray]:
        generator = th.Generator(self._backbone.device).manual_seed(seed)
        return functools.partial(self._decide, generator)

    @th.no_grad()
    def _decide(self, generator: th.Generator, obs: Observation) -> np.ndarray:
        """The next chunk, float64 (n, 7)."""
        model = self._backbone
        ids, mask = (th.from_numpy(part[None]).to(model.device) for part in self._prompt(obs))
        images = [self._frame(obs, key)[None] for key in self._keys]
        if self._transform is not None:
            images = [self._transform(frames) for frames in images]
        inputs = model_inputs(model, ids, mask, images, obs["state"][None], self._unnorm_key)
        if model.abilities.regresses_actions:
            stats = model.processor.action_stats(self._unnorm_key)
            return to_environment(unnormalize(model.regress_actions(**inputs).cpu().numpy(), stats))[0]
        return self._codec.decode(self._bins(inputs, generator))[0]

    def _frame(self, obs: Observation, key: str) -> np.ndarray:
        frame = np.asarray(obs[key]) if key in obs else np.empty(0)
        shape = frame.shape
        if shape[:2] != (self.image_size, self.image_size):
            found = f"is {shape[0]} x {shape[1]} pixels" if len(shape) == 3 else "is not shown"
            raise ValueError(
                f"The model reads {key!r} with {self.image_size} x {self.image_size} pixels, and it {found}; make the "
                f"environment with image_size={self.image_size}, cameras={self.cameras!r}."
            )
        return frame

    def _bins(self, inputs: dict[str, Any], generator: th.Generator) -> np.ndarray:
        """The bins to execute, int64 (1, N)."""
        if self._scorer is None:
            sample = self._backbone.sample_actions(**inputs, sampling=self._sampling, generator=generator)
            return np.asarray(sample.bins.cpu().numpy())
        candidates = self._backbone.sample_candidates(
            **inputs,
            n_samples=self._n,
            greedy_first=self._sampling.deterministic,
            sampling=dataclasses.replace(self._sampling, deterministic=False),
            generator=generator,
        )
        question = Question(inputs, candidates)
        (best,), _ = choose(self._scorer, question)
        return question.actions[:, best]

    def _prompt(self, obs: Observation) -> tuple[np.ndarray, np.ndarray]:
        return self._codec.encode_prompt(obs["instruction"], obs["state"])


class _ActorSteps:
    """Decisions of a policy that is none of our models, one environment at a time.

    Args:
        actor: The policy.
        policy: How it is asked to decide.
        name: Its name.

    Raises:
        ValueError: If it is asked to draw, or needs the environments of an evaluation.
    """

    def __init__(self, actor: Any, policy: StepwisePolicy, name: str) -> None:
        if policy.sample or policy.unnorm_key or policy.best_of_n > 1:
            raise ValueError(
                f"'{policy.model}' takes its actions in its own way; leave sample, unnorm_key and best_of_n out."
            )
        if hasattr(actor, "attach"):
            raise ValueError(f"'{policy.model}' plays in an evaluation's environments alone; record another policy.")
        self._actor = actor
        self.name, self.cameras, self.image_size = name, cameras_of(actor), image_size_of(actor)

    def begin(self, seed: int) -> Callable[[Observation], np.ndarray]:
        if hasattr(self._actor, "reset"):
            self._actor.reset([0])
        return self._decide

    def _decide(self, obs: Observation) -> np.ndarray:
        """The next chunk, float64 (n, 7)."""
        shown = {key: obs[key][None] for key in (*CAMERA_KEYS, "state") if key in obs}
        answer = self._actor.act({**shown, "instruction": [obs["instruction"]]}, [0])
        return checked_actions(answer, type(self._actor).__name__, 1, chunk_size_of(self._actor))[0]
