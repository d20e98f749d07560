"""Stand-ins where the real part would be slow: a backbone of 20,000 parameters, environments without physics."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import nn

from libero_gym.common.checks import whole_number
from vla_agent.action_tokens import BinCodec
from vla_agent.backbone import Abilities
from vla_agent.bins import GREEDY, PLAIN, Sampling
from vla_agent.envs.vec_env import VLAVecEnv

IMAGE_SIZE = 16
VOCAB_SIZE = 300
INSTRUCTIONS = ["go left", "go right please", "stay"]


class FakeConfig(NamedTuple):
    num_images: int = 1
    use_state: bool = False
    action_chunk_size: int = 1


class FakeProcessor:
    """Words are hashed to tokens, bins decode linearly to [-1, 1]."""

    image_size = IMAGE_SIZE
    unnorm_keys = ("fake",)

    def __init__(self, name: str = "fake", config: FakeConfig | None = None) -> None:
        self.name = name
        self.config = config or FakeConfig()

    def codec(self, unnorm_key: str | None = None) -> BinCodec:
        return BinCodec(self.action_table(unnorm_key), self.config.action_chunk_size, self._encode)

    def tokenize(self, instructions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [self._encode(text) for text in instructions]
        length = max(map(len, rows))
        ids = np.array([row + [2] * (length - len(row)) for row in rows], dtype=np.int64)
        mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        return ids, mask

    def action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        if unnorm_key not in (None, "fake"):
            raise ValueError(f"The checkpoint has no statistics for unnorm_key '{unnorm_key}'. It has: ['fake'].")
        return {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}

    def action_table(self, unnorm_key: str | None = None) -> np.ndarray:
        self.action_stats(unnorm_key)
        return np.tile(np.linspace(-1.0, 1.0, 256), (7, 1))

    def normalize_state(self, state: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        return np.clip(state, -1, 1).astype(np.float32)

    def fingerprint(self) -> str:
        return self.name

    def _encode(self, text: str) -> list[int]:
        return [1] + [3 + sum(word.encode()) % 40 for word in text.split()]


class FakeScores(NamedTuple):
    bins: th.Tensor
    logits: th.Tensor
    hidden: th.Tensor


class FakeBackbone(nn.Module):
    """Autoregressive: a recurrent cell over the earlier action tokens, started from image, prompt and state."""

    def __init__(
        self, n_action_tokens: int = 7, width: int = 24, seed: int = 0, config: FakeConfig | None = None
    ) -> None:
        super().__init__()
        self.n_action_tokens = n_action_tokens
        self.hidden_size = width
        self.config = config or FakeConfig(action_chunk_size=n_action_tokens // 7)
        self.processor = FakeProcessor(config=self.config)
        with th.random.fork_rng():
            th.manual_seed(seed)
            self.vision = nn.Linear(3 * 16 * self.config.num_images, width)
            self.state = nn.Linear(8, width)
            self.words = nn.Embedding(VOCAB_SIZE, width)
            self.cell = nn.GRUCell(width, width)
            self.lm_head = nn.Linear(width, VOCAB_SIZE)
            self.spare = nn.Linear(width, 2)  # no output depends on it

    abilities = Abilities(samples_candidates=True)

    @property
    def device(self) -> th.device:
        return self.lm_head.weight.device

    @property
    def _token_ids(self) -> th.Tensor:
        return th.arange(VOCAB_SIZE - 1, VOCAB_SIZE - 257, -1, device=self.lm_head.weight.device)

    def unused_parameter_names(self) -> list[str]:
        unread = [] if self.config.use_state else ["state.weight", "state.bias"]
        return ["spare.weight", "spare.bias", *unread]

    def preprocess(self, *images: th.Tensor) -> th.Tensor:
        assert all(x.dtype == th.uint8 and x.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3) for x in images)
        pixels = th.cat([x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in images], dim=1)
        return pixels.to(self.lm_head.weight.dtype)

    def _first_hidden(
        self, input_ids: th.Tensor, attention_mask: th.Tensor, pixel_values: th.Tensor, state: th.Tensor | None
    ) -> th.Tensor:
        mask = attention_mask.unsqueeze(-1).to(pixel_values.dtype)
        prompt = (self.words(input_ids) * mask).sum(1)
        hidden = self.vision(nn.functional.adaptive_avg_pool2d(pixel_values, 4).flatten(1)) + prompt
        if self.config.use_state:
            assert state is not None
            hidden = hidden + self.state(state)
        return th.tanh(hidden)

    def _logits(self, hidden: th.Tensor) -> th.Tensor:
        return self.lm_head(hidden)[..., self._token_ids]

    @th.no_grad()
    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        sampling: Sampling = PLAIN,
        generator: th.Generator | None = None,
    ) -> FakeScores:
        first = self._first_hidden(input_ids, attention_mask, pixel_values, state)
        return FakeScores(*self._draw(first, sampling, generator), first)

    @th.no_grad()
    def sample_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        n_samples: int,
        *,
        greedy_first: bool = False,
        state: th.Tensor | None = None,
        sampling: Sampling = PLAIN,
        generator: th.Generator | None = None,
    ) -> FakeScores:
        n_samples = whole_number("n_samples", n_samples, 1)
        first = self._first_hidden(input_ids, attention_mask, pixel_values, state)
        drawn = self._draw(first.repeat_interleave(n_samples, 0), sampling, generator)
        bins, logits = (part.unflatten(0, (-1, n_samples)) for part in drawn)
        if greedy_first:
            bins[:, 0], logits[:, 0] = self._draw(first, GREEDY, None)
        return FakeScores(bins, logits, first)

    @th.no_grad()
    def score_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        first = self._first_hidden(input_ids, attention_mask, pixel_values, state)
        logits = self._forced(first.repeat_interleave(bins.shape[1], 0), bins.flatten(0, 1))
        return logits.unflatten(0, bins.shape[:2])

    def _draw(
        self, hidden: th.Tensor, sampling: Sampling, generator: th.Generator | None
    ) -> tuple[th.Tensor, th.Tensor]:
        noise = sampling.noise(self.n_action_tokens, len(hidden), hidden.device, generator)
        all_bins, all_logits = [], []
        for i in range(self.n_action_tokens):
            all_logits.append(self._logits(hidden).float())
            all_bins.append(sampling.choose(all_logits[-1], None if noise is None else noise[i]))
            hidden = self.cell(self.words(self._token_ids[all_bins[-1]]), hidden)
        logits = th.stack(all_logits, 1)
        if not logits.isfinite().all():
            raise FloatingPointError("The fake's logits are not finite.")
        return th.stack(all_bins, 1), logits

    def _forced(self, hidden: th.Tensor, bins: th.Tensor) -> th.Tensor:
        all_logits = []
        for i in range(self.n_action_tokens):
            all_logits.append(self._logits(hidden).float())
            hidden = self.cell(self.words(self._token_ids[bins[:, i]]), hidden)
        return th.stack(all_logits, 1)

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> FakeScores:
        first = self._first_hidden(input_ids, attention_mask, pixel_values, state)
        return FakeScores(bins, self._forced(first, bins), first)

    def encode_observations(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        return self._first_hidden(input_ids, attention_mask, pixel_values, state)


class FakeVectorEnv(gym.vector.VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """LIBERO's spaces, infos and autoreset. The image is dark for task 0 and bright for task 1.

    The reward of a step is 1 if the first action dimension has the sign that the brightness asks for (dark: negative),
    0 otherwise. An episode is a success, and terminates, when the reward was 1 in its last allowed step but one;
    otherwise it is truncated after ``max_episode_steps``.
    """

    def __init__(
        self,
        num_envs: int = 2,
        *,
        chunk_size: int = 1,
        max_episode_steps: int = 4,
        wrist: bool = False,
        privileged: bool = False,
        size: int = 16,
    ) -> None:
        self.num_envs = num_envs
        self.metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = "rgb_array"
        self.instructions = list(INSTRUCTIONS)
        self.max_episode_steps = max_episode_steps
        self.task_ids, self.n_states = (0, 1), 5
        self.task_weights = np.array([0.5, 0.5])
        self.settings = {"chunk_size": chunk_size, "max_episode_steps": max_episode_steps}
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        parts: dict[str, Any] = {"image": image} | ({"wrist_image": image} if wrist else {})
        parts |= {"state": spaces.Box(-np.inf, np.inf, (8,), np.float32), "instruction": spaces.Text(64)}
        if privileged:
            parts["privileged"] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.single_observation_space = spaces.Dict(parts)
        shape = (7,) if chunk_size == 1 else (chunk_size, 7)
        self.single_action_space = spaces.Box(-1, 1, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generators = [np.random.default_rng(i) for i in range(num_envs)]
        self.tasks = np.zeros(num_envs, dtype=np.int64)
        self.states = np.full(num_envs, -1)
        self.resting = np.zeros(num_envs, dtype=bool)
        self.autoreset = True
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        self.seeds: list[Any] = []
        self.options: list[Any] = []
        self.actions: list[np.ndarray] = []
        self.closed_times = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        self.options.append(options)
        options = options or {}
        for i in np.flatnonzero(options.get("reset_mask", np.ones(self.num_envs, dtype=bool))):
            if seed is not None and seed[i] is not None:
                self.generators[i] = np.random.default_rng(seed[i])
            chosen = {name: values[i] for name, values in options.items() if values[i] is not None}
            self._begin(int(i), chosen.get("task_id"), chosen.get("init_state_id", -1))
        return self._observe(), self._infos(np.zeros(self.num_envs), np.ones(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        assert actions.shape == self.action_space.shape
        self.actions.append(actions)
        first = actions.reshape(self.num_envs, -1)[:, 0]
        rewards = (np.sign(first) == np.where(self.tasks == 1, 1.0, -1.0)).astype(np.float64)
        rewards *= ~self.resting
        self.elapsed += ~self.resting
        terminated = (self.elapsed == self.max_episode_steps - 1) & (rewards > 0)
        truncated = (self.elapsed >= self.max_episode_steps) & ~terminated
        terminated, truncated = terminated & ~self.resting, truncated & ~self.resting
        done = terminated | truncated
        infos = self._infos(rewards, np.ones(self.num_envs, dtype=bool), terminated)
        if done.any():
            last, final_info = self._observe(), self._infos(rewards, done, terminated)
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(done):
                final_obs[i] = {key: values[i] for key, values in last.items()}
                self.resting[i] = not self.autoreset
                if self.autoreset:
                    self._begin(int(i))
            infos = self._infos(rewards, np.ones(self.num_envs, dtype=bool), terminated & ~done)
            infos |= {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done}
        return self._observe(), rewards, terminated, truncated, infos

    def set_autoreset(self, enabled: bool) -> None:
        self.autoreset = enabled

    def set_task_weights(self, weights: Any) -> None:
        self.task_weights = np.asarray(weights) / np.sum(weights)

    def snapshot(self) -> dict[str, Any]:
        return {
            "generators": [generator.bit_generator.state for generator in self.generators],
            "tasks": self.tasks.tolist(),
            "elapsed": self.elapsed.tolist(),
            "resting": self.resting.tolist(),
        }

    def restore(self, snapshot: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        for generator, state in zip(self.generators, snapshot["generators"], strict=True):
            generator.bit_generator.state = state
        self.tasks[:] = snapshot["tasks"]
        self.elapsed[:] = snapshot["elapsed"]
        self.resting[:] = snapshot.get("resting", False)  # runs saved before this was kept have none
        return self._observe(), self._infos(np.zeros(self.num_envs), np.ones(self.num_envs, dtype=bool))

    def episode_starts(self, task_id: int) -> list[dict[str, int]]:
        return [{"task_id": task_id, "init_state_id": number} for number in range(self.n_states)]

    def call(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        return tuple((name, i, *args) for i in (indices or range(self.num_envs)))

    def render(self) -> Any:
        return tuple(self._observe()["image"])

    def close_extras(self, **kwargs: Any) -> None:
        self.closed_times += 1

    def _begin(self, i: int, task_id: int | None = None, init_state_id: int = -1) -> None:
        self.tasks[i] = self.generators[i].integers(2) if task_id is None else task_id
        self.states[i] = init_state_id
        self.elapsed[i] = 0
        self.resting[i] = False

    def _observe(self) -> dict[str, Any]:
        shape = (self.num_envs, *self.single_observation_space["image"].shape)  # type: ignore[misc]
        image = np.empty(shape, dtype=np.uint8)
        image[:] = np.where(self.tasks == 1, 200, 50).reshape(-1, 1, 1, 1)
        obs: dict[str, Any] = {"image": image, "state": np.zeros((self.num_envs, 8), dtype=np.float32)}
        obs["state"][:, 0] = self.elapsed
        if "wrist_image" in self.single_observation_space.spaces:
            obs["wrist_image"] = 255 - image
        if "privileged" in self.single_observation_space.spaces:
            obs["privileged"] = np.stack([self.elapsed, self.tasks, np.ones(self.num_envs)], axis=1).astype(np.float32)
        return obs | {"instruction": tuple(INSTRUCTIONS[task] for task in self.tasks)}

    def _infos(self, rewards: np.ndarray, mask: np.ndarray, success: np.ndarray | None = None) -> dict[str, Any]:
        names = np.array([f"task_{task}" for task in self.tasks], dtype=object)
        infos: dict[str, Any] = {
            "is_success": np.zeros(self.num_envs, dtype=bool) if success is None else success.copy(),
            "task_id": self.tasks.copy(),
            "init_state_id": self.states.copy(),
            "elapsed_steps": self.elapsed.copy(),
            "task_name": names,
            "instruction": np.array([INSTRUCTIONS[task] for task in self.tasks], dtype=object),
            "reward_terms": {"success": rewards.copy(), "_success": mask.copy()},
        }
        return infos | {f"_{key}": mask.copy() for key in infos}


def fake_env(n_envs: int = 2, **kwargs: Any) -> VLAVecEnv:
    """`FakeVectorEnv` as an agent sees it."""
    config = FakeConfig(action_chunk_size=kwargs.get("chunk_size", 1))
    return VLAVecEnv(FakeVectorEnv(n_envs, **kwargs), FakeProcessor(config=config))
