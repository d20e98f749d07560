"""VLAVecEnv over the fake environments: SB3's conventions, hand-counted."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fakes import INSTRUCTIONS, FakeProcessor, FakeVectorEnv, fake_env
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from vla_agent import VLAVecEnv, make_vec_env
from vla_agent.action_tokens import BinCodec
from vla_agent.envs.arguments import check_keywords
from vla_agent.envs.episodes import EpisodeStart, play_episodes
from vla_agent.envs.infos import unbatch_infos


def bins_for(env: VLAVecEnv, first: list[int]) -> np.ndarray:
    """Bins whose first dimension is 0 (-1) or 255 (+1)."""
    bins = np.full((env.num_envs, env.action_space.shape[0]), 100)  # type: ignore[index]
    bins[:, 0] = first
    return bins


def test_observations_are_in_their_space_and_hold_no_string() -> None:
    env = fake_env(3, wrist=True)
    obs = env.reset()
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(obs) == ["image", "wrist_image", "state", "input_ids", "attention_mask"]
    for i in range(3):
        assert env.observation_space.contains({key: value[i] for key, value in obs.items()})
    assert obs["image"].dtype == np.uint8
    assert obs["input_ids"].dtype == obs["attention_mask"].dtype == np.int64


def test_prompts_are_those_of_the_shown_instruction() -> None:
    env = fake_env(6)
    obs = env.reset()
    tasks = env.venv.tasks
    assert len(set(tasks)) == 2
    for i, task in enumerate(tasks):
        ids, mask = FakeProcessor().tokenize([INSTRUCTIONS[task]])
        length = int(obs["attention_mask"][i].sum())
        assert length == mask.sum()
        assert obs["input_ids"][i, :length].tolist() == ids[0].tolist()


def test_prompts_of_all_suites_share_a_space() -> None:
    short = VLAVecEnv(FakeVectorEnv(1), FakeProcessor(), instructions=["stay"])
    assert short.observation_space == fake_env(1).observation_space


def test_unknown_instruction_is_named() -> None:
    env = VLAVecEnv(FakeVectorEnv(4), FakeProcessor(), instructions=["stay"])
    with pytest.raises(ValueError, match="of task 1, which is none of the 1 that were tokenised"):
        env.reset()


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_actions_are_decoded_by_the_table(chunk_size: int) -> None:
    env = fake_env(2, chunk_size=chunk_size)
    assert env.action_space == spaces.MultiDiscrete([256] * (7 * chunk_size))
    env.reset()
    bins = np.random.default_rng(0).integers(0, 256, (2, 7 * chunk_size))
    env.step(bins)
    decoded = env.venv.actions[-1]
    assert decoded.shape == ((2, 7) if chunk_size == 1 else (2, 3, 7))
    np.testing.assert_allclose(decoded.reshape(2, -1), -1 + 2 * bins / 255)


def test_table_is_indexed_by_dimension_and_bin() -> None:
    env = fake_env(1)
    env.codec = BinCodec(np.arange(7)[:, None] * 1000.0 + np.arange(256), 1, str.split)  # type: ignore[arg-type]
    decoded = env.decode(np.array([[9, 8, 7, 6, 5, 4, 3]]))
    assert decoded.tolist() == [[9, 1008, 2007, 3006, 4005, 5004, 6003]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 7)), "expected integers"),
        (np.zeros((2, 8), dtype=int), r"expected integers \(2, 7\)"),
        (np.zeros((3, 7), dtype=int), r"expected integers \(2, 7\)"),
        (np.full((2, 7), 256), r"expected bins 0\.\.255"),
        (np.full((2, 7), -1), "expected bins"),
    ],
)
def test_bad_actions(actions: np.ndarray, message: str) -> None:
    env = fake_env(2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_episode_end_as_sb3_wants_it() -> None:
    env = fake_env(1, max_episode_steps=4)
    env.venv.generators[0] = type("Fixed", (), {"integers": lambda self, n: 1})()  # bright: positive earns
    env.reset()
    for step in range(1, 4):
        obs, rewards, dones, infos = env.step(bins_for(env, [255]))
        assert rewards.dtype == np.float32
        assert rewards.tolist() == [1.0]
        assert dones.tolist() == [step == 3]
        assert ("episode" in infos[0]) == ("terminal_observation" in infos[0]) == (step == 3)
    info = infos[0]
    assert info["is_success"] is True
    assert info["TimeLimit.truncated"] is False
    assert info["task_id"] == 1
    assert info["reward_terms"] == {"success": 1.0}
    assert (info["episode"]["r"], info["episode"]["l"]) == (3.0, 3)
    assert info["episode"]["t"] >= 0
    last = info["terminal_observation"]
    assert env.observation_space.contains(last)
    assert last["state"][0] == 3  # the step count that the fake shows
    assert obs["state"][0, 0] == 0  # while the observation is the next episode's


def test_time_limit_is_told_from_the_end_of_the_task() -> None:
    env = fake_env(2, max_episode_steps=4)
    for generator in range(2):
        env.venv.generators[generator] = type("Fixed", (), {"integers": lambda self, n: 1})()
    env.reset()
    for _ in range(3):
        _, _, dones, infos = env.step(bins_for(env, [255, 0]))
    assert dones.tolist() == [True, False]
    _, _, dones, infos = env.step(bins_for(env, [0, 0]))
    assert dones.tolist() == [False, True]
    assert infos[1]["TimeLimit.truncated"] is True
    assert infos[1]["is_success"] is False
    assert infos[1]["episode"]["r"] == 0.0
    assert infos[1]["episode"]["l"] == 4
    assert "episode" not in infos[0]


def test_returns_start_anew_with_each_episode() -> None:
    env = fake_env(1, max_episode_steps=2)
    env.reset()
    ends = []
    for _ in range(20):
        _, _, _, infos = env.step(bins_for(env, [255]))
        ends += [info["episode"] for info in infos if "episode" in info]
    assert len(ends) >= 10
    assert max(end["l"] for end in ends) == 2
    assert max(end["r"] for end in ends) <= 2


def test_seeds_and_options_go_to_the_next_reset_only() -> None:
    env = fake_env(2)
    env.seed(5)
    env.set_options([{"task_id": 0}, {"task_id": 1}])
    env.reset()
    env.reset()
    assert env.venv.seeds == [[5, 6], None]
    assert env.venv.options == [{"task_id": [0, 1]}, None]


def test_options_that_are_refused_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fake_env(2)

    def refuse(**given: Any) -> None:
        raise ValueError(str(given["options"]))

    env.set_options({"task": 3})
    with monkeypatch.context() as patch:
        patch.setattr(env.venv, "reset", refuse)
        with pytest.raises(ValueError, match="task"):
            env.reset()
    env.reset()
    assert env.venv.options == [None]


def test_begun_episodes_are_the_chosen_ones_and_others_go_on() -> None:
    env = fake_env(3, max_episode_steps=9)
    env.reset()
    env.step(bins_for(env, [255] * 3))
    env.seed(8)
    obs = env.begin_episodes({2: {"task_id": 1, "init_state_id": 7}, 0: {"task_id": 0}})
    given = env.venv.options[-1]
    assert given.pop("reset_mask").tolist() == [True, False, True]
    assert given == {"task_id": [0, None, 1], "init_state_id": [None, None, 7]}
    assert env.venv.seeds[-1] == [8, None, 10]
    assert obs["state"][:, 0].tolist() == [0, 1, 0]  # the fake shows how many steps were made
    assert env.instructions()[::2] == [INSTRUCTIONS[0], INSTRUCTIONS[1]]
    assert env.reset_infos[2]["init_state_id"] == 7
    env.begin_episodes({1: {}})
    assert env.venv.seeds[-1] == [None, 9, None]  # each environment's seed is used once, by its own reset
    env.begin_episodes({1: {}})
    assert env.venv.seeds[-1] is None


def test_continuous_actions_go_past_the_table() -> None:
    env = fake_env(2)
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 7))
    env.step_actions(actions)
    np.testing.assert_array_equal(env.venv.actions[-1], actions)


def test_same_seed_same_observations() -> None:
    runs = []
    for _ in range(2):
        env = fake_env(4)
        env.seed(1)
        obs = [env.reset()["image"]]
        obs += [env.step(bins_for(env, [0] * 4))[0]["image"] for _ in range(10)]
        runs.append(np.stack(obs))
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0])) == 2


def test_image_transform_shapes_the_space_and_the_last_frame() -> None:
    def shrink(images: np.ndarray) -> np.ndarray:
        return images[:, ::2, ::2]

    env = VLAVecEnv(FakeVectorEnv(2, max_episode_steps=1), FakeProcessor(), image_transform=shrink)
    assert env.observation_space["image"].shape == (8, 8, 3)  # type: ignore[index]
    assert env.reset()["image"].shape == (2, 8, 8, 3)
    infos = env.step(bins_for(env, [0, 0]))[3]
    assert infos[0]["terminal_observation"]["image"].shape == (8, 8, 3)
    with pytest.raises(ValueError, match="image_transform gives float64"):
        VLAVecEnv(FakeVectorEnv(2), FakeProcessor(), image_transform=lambda images: images / 255)


def test_attributes_methods_and_close() -> None:
    env = fake_env(3)
    assert env.get_attr("max_episode_steps") == [4, 4, 4]
    assert env.get_attr("process_id", indices=1) == [("process_id", 1)]
    assert env.env_method("ping", 7, indices=[0, 2]) == [("ping", 0, 7), ("ping", 2, 7)]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    env.set_task_weights([1, 0])
    assert list(env.venv.task_weights) == [1, 0]
    with pytest.raises(NotImplementedError, match="make them with another argument"):
        env.set_attr("x", 1)
    env.reset()
    assert env.render().shape == (32, 32, 3)  # type: ignore[union-attr]
    env.close()
    env.close()
    assert env.venv.closed_times == 1


def test_sb3_wrappers_and_evaluation_take_it() -> None:
    env = fake_env(2, max_episode_steps=3)

    class Right:
        def predict(self, obs: Any, **kwargs: Any) -> Any:
            bright = obs["image"][:, 0, 0, 0] > 100
            return bins_for(env, np.where(bright, 255, 0).tolist()), None

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as SB3's about a missing Monitor
        mean, std = evaluate_policy(Right(), env, n_eval_episodes=6)  # type: ignore[arg-type]
    assert (mean, std) == (2.0, 0.0)
    normalized = VecNormalize(env, norm_obs=False, norm_reward=True)
    normalized.reset()
    assert normalized.step(bins_for(env, [0, 0]))[1].shape == (2,)


def test_other_autoresets_and_spaces_are_refused() -> None:
    venv = FakeVectorEnv(1)
    venv.metadata["autoreset_mode"] = AutoresetMode.NEXT_STEP
    with pytest.raises(ValueError, match=r"needs AutoresetMode\.SAME_STEP"):
        VLAVecEnv(venv, FakeProcessor())
    with pytest.raises(ValueError, match="take 2 actions per step, but the model decides 1"):
        VLAVecEnv(FakeVectorEnv(1, chunk_size=2), FakeProcessor())
    venv = FakeVectorEnv(1)
    venv.single_action_space = spaces.Box(-1, 1, (6,))
    with pytest.raises(ValueError, match=r"needs actions Box\(7,\)"):
        VLAVecEnv(venv, FakeProcessor())
    venv = FakeVectorEnv(1)
    venv.single_observation_space = spaces.Dict({"image": venv.single_observation_space["image"]})
    with pytest.raises(ValueError, match="with 'instruction'"):
        VLAVecEnv(venv, FakeProcessor())


def test_unbatched_infos_follow_the_masks() -> None:
    infos = {
        "a": np.array([1, 2]),
        "_a": np.array([True, False]),
        "terms": {"x": np.array([0.5, 1.5]), "_x": np.array([True, True])},
        "_terms": np.array([False, True]),
    }
    assert unbatch_infos(infos, [0, 1]) == [{"a": 1}, {"terms": {"x": 1.5}}]


def test_bad_arguments_of_make_vec_env() -> None:
    with pytest.raises(ValueError, match="needs reward_model"):
        make_vec_env("LIBERO-Spatial-v0", reward="process")
    with pytest.raises(ValueError, match="decides 1 actions at a time"):
        make_vec_env("LIBERO-Spatial-v0", chunk_size=8)
    with pytest.raises(ValueError, match="no statistics for unnorm_key 'bridge'"):
        make_vec_env("LIBERO-Spatial-v0", unnorm_key="bridge")
    with pytest.raises(ValueError, match="no checkpoint folder"):
        make_vec_env("LIBERO-Spatial-v0", model="no-such-model")


def test_arguments_of_the_back_end_pass_and_misspelt_ones_do_not() -> None:
    given = {"restart": True, "n_workers": 2, "timeout": 5.0, "backend": "processes", "privileged": True}
    check_keywords("LIBERO-Spatial-v0", given, make_vec_env)
    with pytest.raises(TypeError, match=r"takes no 'n_worker'\. Did you mean 'n_workers'\?"):
        check_keywords("LIBERO-Spatial-v0", {"n_worker": 2}, make_vec_env)
    with pytest.raises(TypeError, match="takes no 'plan'"):
        check_keywords("LIBERO-Spatial-v0", {"plan": None}, make_vec_env)


def test_there_are_no_images_without_a_render_mode() -> None:
    class Still:
        def predict(self, obs: Any, deterministic: bool = True) -> tuple[np.ndarray, None]:
            return np.full((2, 7), 128), None

    env = make_vec_env("LIBERO-Spatial-v0", 2, model="tiny", task_id=0, cameras=(), n_workers=1, max_episode_steps=2)
    env.reset()
    with pytest.warns(
        UserWarning, match=r"The render mode is None, so there are no images; make_vec_env\(render_mode="
    ):
        assert env.get_images() == [None, None]
    with pytest.warns(UserWarning, match="there are no images"):
        (episode,) = play_episodes(env, Still(), [EpisodeStart(0, 1)], watch=env.get_images)
    assert episode.frames == [None] * 3
    env.close()
