"""Success rates by protocol: every task asked for from every initial state asked for, exactly once, in parallel."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch as th
from tqdm import tqdm

from vla_agent.policy import VLAPolicy, check_fit
from vla_agent.reports import EpisodeResult, EvaluationReport
from vla_agent.vec_env import PUBLISHED_RENDER_SIZE, VLAVecEnv, describe_suite, make_vec_env, published_transform

Protocol = Literal["openvla", "training"]
PROTOCOLS = ("openvla", "training")


class Trial(NamedTuple):
    """One episode to run."""

    task_id: int
    init_state_id: int


def evaluate_policy(
    model: Any,
    env_id: str = "LIBERO-Spatial-v0",
    *,
    deterministic: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> EvaluationReport:
    """Run a model once from every initial state of every task asked for.

    The same arguments give the same episodes. Another ``n_envs`` changes the batches that the model sees, and with
    them its last bits: greedy decoding then rarely, sampling always takes other ways.

    Args:
        model: What acts; see `Evaluator`.
        env_id: Such as "LIBERO-Spatial-v0".
        deterministic: Decode greedily, as the protocol does.
        seed: Of torch's generators, for sampling; they are left as they were found.
        progress_bar: Show episodes and successes so far, on a terminal.
        **kwargs: Further arguments of `Evaluator`.

    Raises:
        ValueError: If an argument is out of range, or model and environment do not fit.
    """
    with Evaluator(model, env_id, **kwargs) as evaluator:
        return evaluator.run(deterministic=deterministic, seed=seed, progress_bar=progress_bar)


class Evaluator:
    """A model, environments and a plan, for one evaluation or for several of a model that changes.

    Args:
        model: A `VLAPPO` or one that it saved, a checkpoint ("tiny", a folder, a hub id), an `OpenVLA`, or anything
            with ``predict(obs, deterministic=)``, which gets `VLAVecEnv`'s observations and gives its bins.
        env_id: Such as "LIBERO-Spatial-v0".
        task_ids: Tasks of the suite; all by default.
        init_state_ids: Official initial states, each once per task; all 50 by default.
        n_envs: Environments side by side; as many as CPU cores by default, and never more than episodes.
        protocol: Which way images take. "openvla": rendered at 256 pixels, JPEG, Lanczos resize to the model's size, as
            published. "training": as `make_vec_env` feeds them in training, which for models that do not take 224
            pixels is to render at their size.
        center_crop: Whether protocol "openvla" ends with the centre crop, right for models trained with random crops.
            None: for models that take 224 pixels, as the published ones do.
        renderer: "exact" for every reported result, or "fast".
        max_episode_steps: Control steps; the suite's limit by default.
        unnorm_key: Which of the checkpoint's statistics decode the actions; may be left out where there is one.
        processor: Whose prompts and action table serve a ``model`` that is none of a checkpoint: a processor, or what
            `load_processor` takes.
        device: Where a checkpoint is loaded to.
        **env_kwargs: Further arguments of the environments, such as ``n_workers``.

    Raises:
        ValueError: If an argument is out of range, or model and environment do not fit.
        TypeError: If ``model`` cannot act.
    """

    def __init__(
        self,
        model: Any,
        env_id: str = "LIBERO-Spatial-v0",
        *,
        task_ids: Sequence[int] | None = None,
        init_state_ids: Iterable[int] = range(50),
        n_envs: int | None = None,
        protocol: Protocol = "openvla",
        center_crop: bool | None = None,
        renderer: str = "exact",
        max_episode_steps: int | None = None,
        unnorm_key: str | None = None,
        processor: Any = "tiny",
        device: th.device | str = "auto",
        **env_kwargs: Any,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"Unknown protocol {protocol!r}. Choices: {', '.join(map(repr, PROTOCOLS))}.")
        self.suite = describe_suite(env_id)
        self.trials = plan_trials(env_id, task_ids, init_state_ids)
        chosen = sorted({trial.task_id for trial in self.trials})
        with _own_randomness(0):
            self.model = load_model(model, device)
        self._processor = processor_of(self.model, processor)
        policy = getattr(self.model, "policy", None)
        unnorm_key = unnorm_key or getattr(policy, "unnorm_key", None)
        size = self._processor.image_size
        if protocol == "openvla":
            center_crop = size == 224 if center_crop is None else center_crop
            env_kwargs.setdefault("image_size", PUBLISHED_RENDER_SIZE)
            env_kwargs["image_transform"] = published_transform(size, center_crop)
        elif center_crop is not None:
            env_kwargs["center_crop"] = center_crop
        n_envs = (os.cpu_count() or 1) if n_envs is None else n_envs
        self.env = make_vec_env(
            env_id,
            max(1, min(n_envs, len(self.trials))),
            model=self._processor,
            unnorm_key=unnorm_key,
            task_id=chosen,
            renderer=renderer,
            max_episode_steps=max_episode_steps,
            **{"restart": True, **env_kwargs},
        )
        try:
            with _own_randomness(0):
                self.policy = as_policy(self.model, self.env, unnorm_key)
        except BaseException:
            self.env.close()
            raise
        self.conditions: dict[str, Any] = {
            "suite": self.suite.name,
            "task_ids": chosen,
            "init_state_ids": sorted({trial.init_state_id for trial in self.trials}),
            "protocol": protocol,
            "renderer": renderer,
            "settle_steps": env_kwargs.get("settle_steps", 10),
            "max_steps": max_episode_steps or self.suite.max_steps,
        }
        self.settings: dict[str, Any] = {
            "env_id": env_id,
            "center_crop": center_crop,
            "image_size": size,
            "cameras": [key for key in ("image", "wrist_image") if key in self.env.observation_space.spaces],  # type: ignore[attr-defined]
            "chunk_size": self.env.action_space.shape[0] // 7,  # type: ignore[index]
            "n_envs": self.env.num_envs,
        }

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        self.env.close()

    def run(
        self,
        *,
        deterministic: bool = True,
        seed: int = 0,
        progress_bar: bool = True,
        finished: Sequence[EpisodeResult] = (),
        on_episode: Callable[[EpisodeResult], None] | None = None,
    ) -> EvaluationReport:
        """Run every trial.

        Args:
            deterministic: Decode greedily, as the protocol does.
            seed: Of torch's generators, for sampling; they are left as they were found.
            progress_bar: Show episodes and successes so far, on a terminal.
            finished: Episodes of an earlier, interrupted run, which are not run again.
            on_episode: Is given each episode as it ends.
        """
        results = {Trial(episode.task_id, episode.init_state_id): episode for episode in finished}
        trials = [trial for trial in self.trials if trial not in results]
        clock = _Clock()
        start = time.perf_counter()
        with (
            _own_randomness(seed),
            tqdm(
                total=len(self.trials),
                initial=len(results),
                desc=self.suite.name,
                unit="episode",
                disable=None if progress_bar else True,
            ) as bar,
        ):
            for episode in self._episodes(trials, deterministic, clock):
                results[Trial(episode.task_id, episode.init_state_id)] = episode
                if on_episode is not None:
                    on_episode(episode)
                successes = sum(result.success for result in results.values())
                bar.set_postfix_str(f"success {successes / len(results):.1%}", refresh=False)
                bar.update()
        return EvaluationReport(
            conditions=self.conditions,
            settings={**self.settings, "deterministic": deterministic, "seed": seed},
            episodes=[results[trial] for trial in self.trials if trial in results],
            task_names={task_id: self.suite.task_names[task_id] for task_id in self.conditions["task_ids"]},
            timing={"wall_s": time.perf_counter() - start, **clock.summary(self.env.num_envs)},
        )

    def _episodes(self, trials: Sequence[Trial], deterministic: bool, clock: _Clock) -> Iterator[EpisodeResult]:
        """Episodes as they end. The next trial goes to whichever environment is free."""
        env = self.env
        waiting = deque(trials)
        running: dict[int, Trial] = {}
        while waiting or running:
            free = [i for i in range(env.num_envs) if i not in running]
            starting = {i: waiting.popleft() for i in free[: len(waiting)]}
            if starting:
                obs = self._start(running, starting)
            with clock.decision():
                actions, _ = self.policy.predict(obs, deterministic=deterministic)
            new_obs, _, dones, infos = env.step(actions)
            obs = cast(dict[str, np.ndarray], new_obs)
            for i, trial in list(running.items()):
                if not dones[i]:
                    continue
                del running[i]
                if infos[i].get("worker_restarted", False) and not infos[i]["is_success"]:
                    waiting.appendleft(trial)  # cut short by a worker that had to be replaced
                    continue
                steps = int(infos[i]["elapsed_steps"])
                clock.control_steps += steps
                yield EpisodeResult(trial.task_id, trial.init_state_id, bool(infos[i]["is_success"]), steps)

    def _start(self, running: dict[int, Trial], starting: dict[int, Trial]) -> dict[str, np.ndarray]:
        """Begin trials; again those whose worker was replaced meanwhile. Gives all environments' observations."""
        running.update(starting)
        while True:
            obs = self.env.begin_episodes({i: trial._asdict() for i, trial in starting.items()})
            infos = self.env.reset_infos
            shown = {i: (infos[i]["task_id"], infos[i]["init_state_id"]) for i in running}
            starting = {i: trial for i, trial in running.items() if shown[i] != trial}
            if not starting:
                return obs


class _Clock:
    """How long decisions take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.control_steps = 0

    @contextlib.contextmanager
    def decision(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - start)

    def summary(self, n_envs: int) -> dict[str, Any]:
        """Milliseconds of a call of `predict` for a batch, and per control step executed."""
        if not self.seconds:
            return {}
        return {
            "predict_ms_median": float(np.median(self.seconds)) * 1e3,
            "predict_ms_p95": float(np.quantile(self.seconds, 0.95)) * 1e3,
            "predict_batch": n_envs,
            "predict_calls": len(self.seconds),
            "ms_per_action": sum(self.seconds) * 1e3 / max(self.control_steps, 1),
        }


def plan_trials(env_id: str, task_ids: Sequence[int] | None, init_state_ids: Iterable[int]) -> list[Trial]:
    """Every pair of a task and an initial state, in order, once.

    Raises:
        ValueError: If a task or a state does not exist, is asked for twice, or there is none.
    """
    suite = describe_suite(env_id)
    tasks = list(range(len(suite.task_names))) if task_ids is None else list(task_ids)
    states = list(init_state_ids)
    for name, ids in (("task_ids", tasks), ("init_state_ids", states)):
        if not ids:
            raise ValueError(f"{name} is empty; give at least one.")
        if len(set(ids)) < len(ids):
            raise ValueError(f"{name} names one twice: {ids}; every episode is run once.")
    for task_id in tasks:
        if task_id not in range(len(suite.task_names)):
            raise ValueError(f"task_ids has {task_id!r}; {suite.name} has tasks 0 to {len(suite.task_names) - 1}.")
        n_states = suite.n_initial_states(task_id)
        for state in states:
            if state not in range(n_states):
                raise ValueError(
                    f"init_state_ids has {state!r}; task {task_id} of {suite.name} has official initial states 0 to "
                    f"{n_states - 1}."
                )
    return [Trial(int(task_id), int(state)) for task_id in tasks for state in states]


def load_model(model: Any, device: th.device | str = "auto") -> Any:
    """The model itself, or what is saved under its name: a `VLAPPO` or an `OpenVLA`.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    if not isinstance(model, (str, Path)):
        return model
    from vla_agent.checkpointing import HYPERPARAMETERS
    from vla_agent.openvla import OpenVLA
    from vla_agent.ppo import VLAPPO

    if (Path(model) / HYPERPARAMETERS).is_file():
        return VLAPPO.load(model, device=device)
    return OpenVLA.from_pretrained(model, device=None if device == "auto" else device)


def processor_of(model: Any, default: Any) -> Any:
    """The model's own processor; for one that has none, ``default``, loaded where it is a checkpoint's name."""
    backbone = getattr(getattr(model, "policy", None), "backbone", model)
    if hasattr(backbone, "processor"):
        return backbone.processor
    if isinstance(default, (str, Path)):
        from vla_agent.openvla import load_processor

        return load_processor(default)
    return default


def as_policy(model: Any, env: VLAVecEnv, unnorm_key: str | None) -> Any:
    """Something with ``predict(obs, deterministic=)`` for these environments.

    Raises:
        ValueError: If the model cannot serve the environments' spaces.
        TypeError: If it cannot act.
    """
    if hasattr(model, "sample_actions"):
        spaces = (env.observation_space, env.action_space)
        return VLAPolicy(*spaces, lambda _: 0.0, model=model, unnorm_key=unnorm_key)
    if not callable(getattr(model, "predict", None)):
        raise TypeError(
            f"A {type(model).__name__} cannot be evaluated; give a VLAPPO, a checkpoint, an OpenVLA, or an object with "
            "predict(obs, deterministic)."
        )
    if isinstance(getattr(model, "policy", None), VLAPolicy):
        check_fit(model.policy.backbone, cast(Any, env.observation_space), cast(Any, env.action_space))
    elif getattr(model, "action_space", env.action_space) != env.action_space:
        raise ValueError(f"The model's actions are {model.action_space}, but the environment takes {env.action_space}.")
    return model


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds torch inside, and leaves its generators as they were."""
    with th.random.fork_rng(devices=range(th.cuda.device_count())):
        th.manual_seed(seed)
        yield
