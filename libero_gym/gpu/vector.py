"""The back end "warp" of `LiberoVectorEnv`: environments are worlds of MuJoCo Warp, a batch for each scene."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from libero_gym.common.checks import flag, whole_number
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import fixture_draw
from libero_gym.dimensions import ACTION_DIM
from libero_gym.env.starts import Choices, choose_episode
from libero_gym.env.state import EpisodeState, snapshot_from_json, snapshot_to_json
from libero_gym.first_use import compile_tasks
from libero_gym.gpu.mirror import Mirror
from libero_gym.gpu.places import Places
from libero_gym.gpu.requirements import check_device, check_physics
from libero_gym.gpu.scene_batch import BufferOverflowError
from libero_gym.gpu.showing import Showing, check_output
from libero_gym.gpu.worlds import SceneWorlds, Start, robot_states, sizes_for
from libero_gym.rewards import discounted_potential
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw
from libero_gym.simulation.states import SimState
from libero_gym.tasks import placement_seeds_of
from libero_gym.vector.arguments import check_snapshot
from libero_gym.vector.backend import ENDED, FINAL, IDLE, RUNNING, Plan, ResetRequests

# What snapshots and settings call this physics.
PHYSICS = "batched"
# Methods of `LiberoEnv` that move on or end it; a world is moved by its batch.
_REFUSED = ("step", "reset", "close")


class Warp(Uncopyable):
    """The back end "warp": environments are worlds that one process steps together, on a GPU or on the CPU.

    Each scene of the suite has a batch of worlds (`worlds.SceneWorlds`), which its tasks share, and further ones when
    more environments draw its tasks; a reset may move an environment to another scene's. A batch is simulated as a
    whole if an environment that moves is in it, and else rests (`places.Places`). Seeds draw the same tasks and initial
    states as elsewhere. Physics is "batched": single precision, near the exact states and never equal to the bit.

    Frames of ``renderer="fast"`` are drawn on the device, of all worlds together. Exact ones are drawn one by one, by
    OpenGL, from states that are copied to the host.

    Args:
        plan: The environments.
        device: ``"cuda"``, ``"cuda:1"`` or ``"cpu"``.
        nconmax: Contacts per world that there is room for, in the mean; None measures the scene.
        njmax: Rows of constraints that there is room for in any one world; None measures the scene.
        deterministic: Whether the same seed and actions give the same rollout to the bit on a GPU, too, as they always
            do on the CPU. It has room for some tens of environments of a scene.
        output: ``"torch"`` hands out observations, rewards and flags as tensors on the device, and frames never leave
            it; infos are the host's.

    Attributes:
        settings: What is other than the environments' own settings say.

    Raises:
        ImportError: If MuJoCo Warp is missing; the message names the extra.
        NotImplementedError: If MuJoCo Warp lacks something that a scene's model has.
        ValueError: If an argument is out of range, there is no such device, or another physics is asked for.
    """

    copy_instead = "make another one."
    n_restarts = 0
    render_devices: tuple[int | None, ...] = (None,)
    info_keys: tuple[str, ...] = ()

    def __init__(
        self,
        plan: Plan,
        *,
        device: str = "cuda",
        nconmax: int | None = None,
        njmax: int | None = None,
        deterministic: bool = False,
        output: str = "numpy",
    ) -> None:
        check_physics(plan.env_kwargs.get("physics"))
        sizes = [
            None if size is None else whole_number(name, size, minimum=1)
            for name, size in (("nconmax", nconmax), ("njmax", njmax))
        ]
        device = check_device(device)
        output = check_output(output, plan.example)
        self.settings: dict[str, Any] = {"physics": PHYSICS}
        self.settings["mujoco"] = f"{PHYSICS} (MuJoCo Warp {version('mujoco-warp')})"
        self.settings |= {"output": output} if output != "numpy" else {}
        self.settings |= {"deterministic": True} if flag("deterministic", deterministic) else {}
        n, example = plan.num_envs, plan.example
        self._example = example
        self._weights = np.full(len(plan.tasks), 1 / len(plan.tasks))
        self._mode: AutoresetMode | None = AutoresetMode.SAME_STEP
        self._actions: np.ndarray | None = None  # of a step that nobody has ended
        self._generators: list[np.random.Generator | None] = [None] * n
        self._episodes: list[EpisodeState | None] = [None] * n
        self._phi = np.zeros(n)
        scenes = []
        for tasks in _by_scene(plan):
            share, room = math.ceil(n * len(tasks) / len(plan.tasks)), sizes_for(tasks, *sizes)
            how = room, example.settle_steps, example.privileged, deterministic and device != "cpu"
            scenes.append(SceneWorlds(tasks, share, device, *how))
        self._places = Places(scenes, n)
        self._mirror = Mirror(plan.env_kwargs)
        self._shown = Showing(plan, self._places, self._mirror, device, output)
        self.arrays: Mapping[str, Any] = self._shown.arrays

    @property
    def is_stepping(self) -> bool:
        """Whether a step has begun that nobody has ended."""
        return self._actions is not None

    def reset(self, requests: ResetRequests) -> None:
        """Begin episodes in some environments; a step that nobody has ended is ended first."""
        if self.is_stepping:
            self.end_step()
        choices = Choices(
            self._example.tasks,
            self._example.task_ids,
            self._weights,
            self._example.init_state_ids,
            self._example.placement_seeds,
        )
        chosen: dict[int, tuple[EpisodeState, np.ndarray]] = {}
        for index, (seed, options) in requests.items():
            if seed is not None or self._generators[index] is None:
                self._generators[index] = seeding.np_random(seed)[0]
            generator = self._generators[index]
            assert generator is not None
            chosen[index] = choose_episode(choices, options, generator)
        for index, (episode, _) in chosen.items():  # only now: one of them may have had no place
            self._episodes[index] = episode
        rows = self._places.move({index: self._episode(index).task for index in requests})
        starts = {index: Start(rows[index], state, _fixtures(episode)) for index, (episode, state) in chosen.items()}
        for group, indices in self._places.by_group(starts):
            worlds = self._places.worlds(indices)
            with self._lost_if_it_overflows():
                features = group.start(dict(zip(worlds, (starts[index] for index in indices), strict=True)))
            self._phi[indices] = group.batch.read("phi")[worlds, 0]
            for index, world in zip(indices, worlds, strict=True):
                self._episode(index).privileged = features.get(world)
        self._show("", list(requests))
        self.arrays["reward_terms"][list(requests)] = 0.0
        self.arrays["phase"][list(requests)] = RUNNING

    def begin_step(self, actions: np.ndarray) -> None:
        """Begin a step of all environments."""
        self._actions = actions.copy()

    def end_step(self) -> None:
        """Do the step.

        Raises:
            BufferOverflowError: If contacts did not fit. All environments have to be reset then.
        """
        assert self._actions is not None
        actions, arrays, self._actions = self._actions, self.arrays, None
        for name in ("rewards", "terminated", "truncated"):
            arrays[name][:] = 0
        over = np.flatnonzero(arrays["phase"] == ENDED)
        running = np.flatnonzero(arrays["phase"] == RUNNING)
        self._simulate(actions.reshape(len(actions), -1, ACTION_DIM), running)
        self._reward(running)
        ended = running[arrays["terminated"][running] | arrays["truncated"][running]]
        self._show(FINAL, ended)
        again = over if self._mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP) else over[:0]
        if self._mode is AutoresetMode.SAME_STEP:
            again = np.concatenate([again, ended])
        self._show("", np.setdiff1d(running, again))
        arrays["phase"][ended] = ENDED
        if again.size:
            self.reset({int(index): (None, {}) for index in again})

    def set_autoreset(self, mode: AutoresetMode | None) -> None:
        """Set what follows an episode's end; None for rest."""
        self._mode = mode

    def set_task_weights(self, weights: np.ndarray) -> None:
        """Set the probability of each task in later resets."""
        self._weights = weights

    def snapshot(self) -> dict[str, Any]:
        """All that the environments' future depends on except the task weights, as JSON can hold it."""
        environments, own = [], (self._example.suite.name, self._example.reward)
        for index, state in enumerate(self._places.states(range(len(self._episodes)))):
            generator = self._generators[index]
            assert generator is not None
            environments.append(snapshot_to_json(*own, self._noted(index), generator, state))
        ended = (self.arrays["phase"] == ENDED).tolist()
        return {"environments": environments, "ended": ended, "physics": PHYSICS}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where `snapshot` was taken."""
        n, example = len(self._episodes), self._example
        saved = check_snapshot(snapshot, {"environments": n, "ended": n})
        if saved.get("physics") != PHYSICS:
            raise ValueError('The snapshot is of another physics than "batched"; restore it where it was taken.')
        own = example.suite.name, example.task_ids, example.tasks, example.privileged, example.reward
        moments = [snapshot_from_json(given, *own) for given in saved["environments"]]
        self._actions = None
        for index, (episode, state, generator) in enumerate(moments):
            self._put(index, episode, state)
            self._generators[index] = generator
        everyone = list(range(n))
        for prefix in ("", FINAL):
            self._show(prefix, everyone)
            self.arrays[prefix + "reward_terms"][:] = 0.0
        self.arrays["phase"][:] = np.where(saved["ended"], ENDED, RUNNING)

    def hand_out(self, values: np.ndarray) -> Any:
        """Rewards or flags as users get them."""
        return self._shown.hand_out(values)

    def render(self) -> tuple[np.ndarray, ...]:
        """One frame per environment."""
        indices = range(len(self._episodes))
        episodes = {index: self._episode(index) for index in indices}
        return tuple(self._shown.frames(episodes, ("agentview",), self._example.render_size)["agentview"])

    def call(self, name: str, chosen: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of a `LiberoEnv` that stands where the environment does.

        After ``set_state`` and ``restore`` the environment is where that one is then.

        Raises:
            ValueError: If the method would step, reset or close a single environment.
        """
        if name in _REFUSED:
            raise ValueError(
                f'call({name!r}) would go by one environment alone, and backend="warp" moves all worlds together; use '
                f"the vector environment's {name}()."
            )
        begun = [index for index in chosen if self._episodes[index] is not None]
        states = dict(zip(begun, self._places.states(begun), strict=True))
        results = []
        for index in chosen:
            member = self._member(index, states.get(index), name)
            results.append(member(*args, **kwargs) if callable(member) else member)
            if name in ("set_state", "restore"):
                episode, moved, self._generators[index] = self._mirror.moment()
                self._put(index, episode, moved)
                self._show("", [index])
                self.arrays["phase"][index] = RUNNING
        return tuple(results)

    def close(self) -> None:
        """Free the worlds."""
        self._places.clear()
        self._mirror.close()

    # ------------------------------------------------------------------------------------------- simulating

    def _simulate(self, actions: np.ndarray, running: np.ndarray) -> None:
        """Step until success or the limit, at most through the chunk; actions (num_envs, chunk_size, 7)."""
        example, arrays = self._example, self.arrays
        active = np.zeros(len(actions), dtype=bool)
        active[running] = True
        for k in range(actions.shape[1]):
            moving = self._places.by_group(np.flatnonzero(active))
            for group, indices in moving:
                worlds, n = self._places.worlds(indices), group.batch.n_worlds
                own, mask = np.zeros((n, ACTION_DIM)), np.zeros(n, dtype=bool)
                own[worlds], mask[worlds] = actions[indices, k], True
                with self._lost_if_it_overflows():
                    group.batch.step(own, mask)
                arrays["terminated"][indices] = group.batch.read("flags")[worlds, 0] != 0
            for index in np.flatnonzero(active):
                episode = self._episode(int(index))
                episode.elapsed_steps += 1
                over = episode.elapsed_steps >= example.step_limits[episode.task.task_id]
                arrays["truncated"][index] = example.max_episode_steps is not None and over
            ended = arrays["terminated"] | arrays["truncated"]
            for group, indices in moving if example.privileged else ():
                last = indices if k == actions.shape[1] - 1 else [index for index in indices if ended[index]]
                if last:  # an environment's last step of the chunk: later ones move its world's arrays
                    self._note_features(group, last)
            active &= ~ended

    @contextlib.contextmanager
    def _lost_if_it_overflows(self) -> Iterator[None]:
        """Let no environment go on whose contacts were dropped."""
        try:
            yield
        except BufferOverflowError:
            self.arrays["phase"][:] = IDLE
            raise

    def _note_features(self, group: SceneWorlds, indices: list[int]) -> None:
        worlds, episodes = self._places.worlds(indices), [self._episode(index) for index in indices]
        limits = np.array([self._example.step_limits[episode.task.task_id] for episode in episodes])
        left = 1 - np.array([episode.elapsed_steps for episode in episodes]) / limits
        found = group.features(worlds, robot_states(group.batch.read("sample")[worlds]), left)
        for episode, row in zip(episodes, found, strict=True):
            episode.privileged = row

    def _reward(self, running: np.ndarray) -> None:
        """Rewards and their terms of those that have stepped; see `env.shaping.reward_terms`."""
        success = self.arrays["terminated"][running].astype(np.float64)
        terms = self.arrays["reward_terms"]
        terms[running, 0] = success
        if self._example.reward == "progress":
            phi = self._places.read("phi", running)[:, 0]
            terms[running, 1] = discounted_potential(self._phi[running], np.where(success > 0, 0.0, phi))
            self._phi[running] = phi
        self.arrays["rewards"][running] = terms[running].sum(axis=1)

    # ------------------------------------------------------------------------------------------ bookkeeping

    def _show(self, prefix: str, indices: Iterable[int]) -> None:
        """Write the observations and infos of some environments."""
        self._shown.show(prefix, {int(index): self._episode(int(index)) for index in indices})

    def _episode(self, index: int) -> EpisodeState:
        episode = self._episodes[index]
        if episode is None:
            raise gym.error.ResetNeeded(f"Call reset() first: environment {index} has no episode.")
        return episode

    def _member(self, index: int, state: SimState | None, name: str) -> Any:
        """A member of a `LiberoEnv` in this state of the environment; None is before its first reset."""
        if state is None:  # the example never had one either; a restored mirror tells where it is then
            return getattr(self._mirror.env if name == "restore" else self._example, name)
        generator = self._generators[index]
        assert generator is not None
        return self._mirror.at(self._noted(index), state, generator, name)

    def _noted(self, index: int) -> EpisodeState:
        """An environment's episode with the potential that its last step has found."""
        episode = self._episode(index)
        episode.phi = float(self._phi[index]) if self._example.reward == "progress" else 0.0
        return episode

    def _put(self, index: int, episode: EpisodeState, state: SimState) -> None:
        """Put an environment into an episode's state."""
        self._places.put(index, episode.task, state, _fixtures(episode), episode.phi)
        self._episodes[index], self._phi[index] = episode, episode.phi


def _fixtures(episode: EpisodeState) -> FixtureDraw:
    return fixture_draw(episode.task, *episode.fixtures)


def _by_scene(plan: Plan) -> list[list[CompiledTask]]:
    """The plan's tasks, compiled, by their scene."""
    example = plan.example
    renderer = example.renderer if example.cameras else None
    seeds = [placement_seeds_of(task, example.placement_seeds) for task in plan.tasks]
    for same in dict.fromkeys(seeds):  # tasks without initial states have others than the rest
        alike = [task for task, own in zip(plan.tasks, seeds, strict=True) if own == same]
        compile_tasks(alike, renderer=renderer, placement_seeds=same)
    scenes: dict[str, list[CompiledTask]] = {}
    for task in plan.tasks:
        compiled = compile_task(task)
        scenes.setdefault(compiled.visual_key, []).append(compiled)
    return list(scenes.values())
