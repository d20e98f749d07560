"""The critic of chunks: what it learns, that it goes on to the bit, and whom it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from evaluations import fake_model
from fakes import FakeConfig, fake_env

from vla_agent.common.errors import NonFiniteError
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.test_time import BestOfN, ChunkCritic, ScorerError, scorer_by_name
from vla_agent.test_time.calibration import success_auc
from vla_agent.test_time.critic import CONFIG_FILE, WEIGHTS_FILE, CriticConfig, normalized
from vla_agent.test_time.critic_training import CriticSettings, CriticTrainer
from vla_agent.test_time.decisions import Decisions, play_decisions

CONFIG = CriticConfig("none", ("image",), hidden_size=4, n_action_tokens=7, gamma=0.5, widths=(64,), n_heads=2)
FAST = CriticSettings(n_epochs=50, batch_size=64, learning_rate=3e-3, rank_coef=1.0)


def decisions(n: int = 512, seed: int = 0) -> Decisions:
    """Episodes of one decision. It is right, and succeeds, if the first action has the sign of the first feature."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(n, 2))
    hidden = np.concatenate([half, -half], axis=1).astype(np.float32)  # a mean of 0, which its norm leaves alone
    bins = rng.integers(96, 160, (n, 7)).astype(np.uint8)
    success = (bins[:, 0] >= 128) == (hidden[:, 0] > 0)
    return Decisions(hidden, bins, np.arange(n), success)


def test_returns_are_discounted_from_the_end_of_each_success() -> None:
    column = np.zeros((5, 1))
    some = Decisions(column, column, np.array([0, 0, 0, 1, 1]), np.array([True, True, True, False, False]))
    assert some.returns(0.5).tolist() == [0.25, 0.5, 1.0, 0.0, 0.0]


def test_parts_are_joined_episode_behind_episode(tmp_path: Path) -> None:
    one = decisions(3)
    one.save(tmp_path / "one.safetensors")
    joined = Decisions.joined([Decisions.load(tmp_path / "one.safetensors"), one])
    assert joined.episodes.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(joined.bins, np.concatenate([one.bins, one.bins]))
    (tmp_path / "one.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"one\.safetensors' is damaged .*; remove it to play its episodes again"):
        Decisions.load(tmp_path / "one.safetensors")


def test_it_learns_which_chunks_succeed_and_keeps_unseen_ones_low() -> None:
    critic = CriticTrainer(CONFIG, decisions(), FAST).run()
    unseen = decisions(seed=1)
    hidden, chunks = th.from_numpy(unseen.hidden), normalized(unseen.bins)
    with th.no_grad():
        scores = critic(hidden, chunks).amin(0)
        # Far from all that was executed: what extrapolates to look good would be found among many candidates.
        far = critic(hidden, th.sign(chunks)).amin(0)
    auc = success_auc(scores.tolist(), unseen.success.tolist())
    assert auc is not None
    assert auc > 0.95
    good = th.from_numpy(unseen.success)
    assert (far[good] < scores[good]).float().mean() > 0.8


def test_without_the_rank_loss_unseen_chunks_are_not_kept_low() -> None:
    plain = CriticSettings(**(vars(FAST) | {"rank_coef": 0.0}))
    critic = CriticTrainer(CONFIG, decisions(), plain).run()
    unseen = decisions(seed=1)
    good = th.from_numpy(unseen.success)
    hidden, chunks = th.from_numpy(unseen.hidden)[good], normalized(unseen.bins)[good]
    with th.no_grad():
        below = critic(hidden, th.sign(chunks)).amin(0) < critic(hidden, chunks).amin(0)
    assert below.float().mean() < 0.3


def test_values_are_those_of_the_discounted_success() -> None:
    """Every state alike, and half of the chunks succeed one decision later: Q is about gamma / 2."""
    n = 400
    success = np.repeat(np.arange(n) % 2 == 0, 2)
    hidden, bins = np.zeros((2 * n, 4), np.float32), np.full((2 * n, 7), 128, np.uint8)
    hidden[1::2] = 1.0
    hidden[::2, 0] = -1.0
    settings = CriticSettings(n_epochs=60, batch_size=200, learning_rate=3e-3, rank_coef=0.0)
    critic = CriticTrainer(CONFIG, Decisions(hidden, bins, np.repeat(np.arange(n), 2), success), settings).run()
    with th.no_grad():
        first, last = critic(th.from_numpy(hidden[:2]), normalized(bins[:2])).mean(0).sigmoid().tolist()
    assert first == pytest.approx(0.25, abs=0.03)
    assert last == pytest.approx(0.5, abs=0.03)


def test_a_stopped_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    settings = CriticSettings(n_epochs=4, batch_size=64)
    whole = CriticTrainer(CONFIG, decisions(), settings)
    expected = whole.run().state_dict()
    stopped = CriticTrainer(CONFIG, decisions(), settings)
    for _ in range(2):
        stopped.train_epoch()
    stopped.save(tmp_path / "training")
    resumed = CriticTrainer(CONFIG, decisions(), settings)
    resumed.resume(tmp_path / "training")
    assert resumed.epoch == 2
    found = resumed.run().state_dict()
    assert all(th.equal(found[name], tensor) for name, tensor in expected.items())
    fewer = CriticTrainer(CONFIG, decisions(), CriticSettings(n_epochs=1, batch_size=64))
    with pytest.raises(ValueError, match="has 2 epochs already, and n_epochs=1 were asked for; ask for as many"):
        fewer.resume(tmp_path / "training")
    other = CriticTrainer(CONFIG, decisions(seed=3), settings)
    with pytest.raises(ValueError, match="is of a critic with other settings or decisions; remove it"):
        other.resume(tmp_path / "training")


@pytest.mark.parametrize("batch_size", [2, 8, 120])
def test_ranks_are_of_all_successes_however_few_a_batch_holds(batch_size: int) -> None:
    some = decisions(120)
    few = some._replace(success=np.arange(120) < 6)
    trainer = CriticTrainer(CONFIG, few, CriticSettings(batch_size=batch_size, noise=1e-6, learning_rate=1e-12))
    metrics = trainer.train_epoch()  # near misses that miss by nothing rank below by chance, all weights stay
    assert metrics.rank_accuracy * 6 == pytest.approx(round(metrics.rank_accuracy * 6))
    assert metrics.rank_loss > 0.5, "softplus(0) is 0.69; batches without a success said 0"


def test_decisions_that_are_no_numbers_stop_the_training_and_leave_the_weights() -> None:
    broken = decisions()
    trainer = CriticTrainer(CONFIG, broken, FAST)
    trainer._hidden[3, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"The loss is nan at step \d"):
        trainer.train_epoch()
    assert all(parameter.isfinite().all() for parameter in trainer.critic.parameters())


def test_a_seed_decides_the_critic() -> None:
    def weights(seed: int) -> dict[str, th.Tensor]:
        return CriticTrainer(CONFIG, decisions(), CriticSettings(n_epochs=1, seed=seed)).run().state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(th.equal(first[name], again[name]) for name in first)
    assert not th.equal(first["heads.0.0.weight"], other["heads.0.0.weight"])


def test_decisions_are_of_the_states_that_they_were_taken_in() -> None:
    learner, env = fake_model(), fake_env(2, max_episode_steps=4)
    starts = [EpisodeStart(task_id=i % 2) for i in range(3)]
    parts = list(play_decisions(env, learner, starts, deterministic=True))
    assert {len(part.bins) for part in parts} <= {3, 4}
    for part in parts:
        # The fake's image is the same throughout an episode, and so are its hidden states and greedy actions.
        assert (part.hidden == part.hidden[0]).all()
        assert (part.bins == part.bins[0]).all()
    assert len({tuple(part.hidden[0]) for part in parts}) == 2
    obs = env.begin_episodes({0: {"task_id": 0}, 1: {"task_id": 1}})
    policy = learner.policy
    tensors, _ = policy.obs_to_tensor(obs)
    with th.no_grad():
        expected = policy.backbone.encode_observations(**policy.backbone_inputs(tensors))
    assert {tuple(part.hidden[0].tolist()) for part in parts} == {tuple(row.tolist()) for row in expected}


def test_it_chooses_for_the_policy_that_it_was_trained_for(tmp_path: Path) -> None:
    learner = fake_model()
    config = CriticConfig.of(learner.policy, widths=(8,), n_heads=2)
    critic = ChunkCritic(config)
    critic.save(tmp_path / "critic")
    env = fake_env(2)
    loaded = scorer_by_name(f"critic:{tmp_path / 'critic'}")(learner.policy, env)
    obs = env.reset()
    found = BestOfN(learner, 8, loaded, seed=0).predict(obs)[0]
    assert np.array_equal(found, BestOfN(learner, 8, critic, seed=0).predict(obs)[0])


def test_a_critic_of_another_model_is_refused(tmp_path: Path) -> None:
    learner = fake_model()
    critic = ChunkCritic(CriticConfig.of(learner.policy, widths=(8,)))
    critic.save(tmp_path / "critic")
    other = fake_model()
    with th.no_grad():
        other.policy.backbone.lm_head.weight.mul_(2)
    with pytest.raises(ScorerError, match=r"was trained on the hidden states of other weights \(\w{16}\) than the"):
        ChunkCritic.load(tmp_path / "critic", other)
    with pytest.raises(ScorerError, match=r"reads image, and the policy's model image, wrist_image; train one"):
        ChunkCritic.load(tmp_path / "critic", fake_model(config=FakeConfig(num_images=2)))
    with pytest.raises(ScorerError, match=r"is for chunks of 7 tokens, and the policy's model has chunks of 14 tokens"):
        ChunkCritic.load(tmp_path / "critic", fake_model(chunk_size=2))


def test_a_missing_or_damaged_critic_is_named(tmp_path: Path) -> None:
    learner, folder = fake_model(), tmp_path / "critic"
    with pytest.raises(ScorerError, match=r"There is no critic at '.*'; give a folder with critic\.json"):
        ChunkCritic.load(folder, learner)
    ChunkCritic(CriticConfig.of(learner.policy, widths=(8,))).save(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(ScorerError, match="is incomplete or damaged"):
        ChunkCritic.load(folder, learner)
    document = json.loads((folder / CONFIG_FILE).read_text())
    for change in (
        *({"n_heads": 0}, {"widths": ["a"]}, {"more": 1}, {"hidden_size": 2**40}),
        *({"n_heads": 65}, {"widths": [8] * 17}),  # of which as many modules would be made
    ):
        (folder / CONFIG_FILE).write_text(json.dumps(document | change))
        with pytest.raises(ScorerError, match="is incomplete or damaged"):
            ChunkCritic.load(folder, learner)


@pytest.mark.parametrize("name", ["magic", "critic", "critic:", "agreement:3", "success-oracle:soon", None])
def test_names_of_no_scorer_are_refused(name: Any) -> None:
    with pytest.raises(ScorerError, match="expected agreement, critic:FOLDER, process-oracle or"):
        scorer_by_name(name)


def test_decisions_that_teach_nothing_are_refused() -> None:
    some = decisions(8)
    with pytest.raises(ValueError, match="8 decisions with 0 of them in successes; a critic learns from episodes"):
        CriticTrainer(CONFIG, some._replace(success=np.zeros(8, dtype=bool)))
    with pytest.raises(ValueError, match=r"hidden states of width 4 and chunks of 6 tokens, and the critic is for 4"):
        CriticTrainer(CONFIG, some._replace(bins=some.bins[:, 1:]))
