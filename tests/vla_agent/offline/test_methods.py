"""Each method marks the data as its equations say, prefers what succeeded, and resumes to the bit."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from cloning import SIZE, demonstrations, small_model
from outcomes import LEFT, RIGHT, attempt, attempts, recorded

from vla_agent.offline import (
    AWR,
    Advantages,
    FilteredCloning,
    OfflineMethod,
    TaggedCloning,
    ValueSettings,
    advantages,
    estimate_advantages,
)
from vla_agent.offline.awr import effective_sample_size
from vla_agent.offline.values import fit_values
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.processor import load_processor
from vla_agent.sft import ActionChunks, SupervisedTrainer
from vla_agent.sft.tags import Tags
from vla_agent.sft.wording import word_examples

METHODS = [FilteredCloning(), AWR(), TaggedCloning()]
IDS = ["filtered", "awr", "tagged"]


def estimate_of(values: Any) -> Advantages:
    """An estimate whose advantages are these."""
    array = np.asarray(values, np.float32)
    return Advantages(array, np.zeros_like(array))


def trained_model(folder: Path, data: ActionChunks) -> OpenVLA:
    """A model that knows the data's statistics, as one that recorded them does."""
    model = small_model(folder)
    model.config.norm_stats = {"libero": data.statistics()}
    return model


def learner(folder: Path, method: OfflineMethod, word: str = "", **settings: Any) -> SupervisedTrainer:
    """A trainer whose data a method has marked; a model with a word was tagged before."""
    data = recorded()
    model = trained_model(folder, data)
    model.config.prompt_word = word
    estimate = estimate_advantages(model, data) if method.needs_advantages else None
    method.prepare(data, estimate)
    defaults: dict[str, Any] = {"n_steps": 4, "batch_size": 4, "warmup_steps": 2, "validation_share": 0.0}
    return SupervisedTrainer(model, data, **defaults | settings)


# ---------------------------------------------------------------------------------------------------------- values


def test_values_tell_hidden_states_of_other_episodes_apart() -> None:
    rng = np.random.default_rng(0)
    good = np.repeat(rng.random(40) < 0.5, 10)
    hidden = th.from_numpy(rng.normal(size=(400, 8)).astype(np.float32))
    hidden[:, 0] += 8 * th.from_numpy(good).float()
    random_state, settings = th.get_rng_state(), ValueSettings(n_epochs=80)
    fit = fit_values(hidden, good.astype(float), np.repeat(np.arange(40), 10), settings)
    assert th.equal(th.get_rng_state(), random_state)
    assert 1 - (good - fit.values).var() / good.var() > 0.6
    again = fit_values(hidden, good.astype(float), np.repeat(np.arange(40), 10), settings)
    np.testing.assert_array_equal(again.values, fit.values)


def test_an_episodes_values_do_not_know_how_it_ends() -> None:
    """Hidden states name the episode, whose luck nothing tells beforehand, and how far it is, which counts."""
    episode_ids, far = np.repeat(np.arange(40), 10), np.tile(np.linspace(-2, 2, 10), 40)
    lucky = (np.random.default_rng(0).random(40) < 0.5)[episode_ids]
    hidden = th.from_numpy(np.column_stack([2 * np.eye(40)[episode_ids], far]).astype(np.float32))
    fit = fit_values(hidden, lucky + far, episode_ids, ValueSettings(n_epochs=80))
    assert np.corrcoef(fit.values, far)[0, 1] > 0.95
    remembered = fit.values - far
    assert abs(remembered[lucky].mean() - remembered[~lucky].mean()) < 0.1, "one head for all remembers 0.87 of 1"


def test_values_need_two_episodes() -> None:
    hidden, returns, episode_ids = th.ones(20, 3), np.repeat([1.0, 0.0], 10), np.repeat([0, 1], 10)
    fit = fit_values(hidden, returns, episode_ids, ValueSettings())
    np.testing.assert_allclose(fit.values, 1 - returns, err_msg="each tells the other", atol=1e-6)
    with pytest.raises(ValueError, match="There is 1 episode"):
        fit_values(hidden[:10], returns[:10], episode_ids[:10], ValueSettings())


def test_values_of_what_cannot_be_told_apart_are_means(tmp_path: Path) -> None:
    data = recorded()
    estimate = estimate_advantages(trained_model(tmp_path, data), data, ValueSettings(gamma=1.0))
    np.testing.assert_array_equal(estimate.returns, np.tile(np.repeat([1.0, 0.0], 12), 4))
    assert np.abs(estimate.values - 0.5).max() < 0.2, "the mean of the other folds' returns, of 3 or 4 in 6 or 7"
    assert estimate.advantages[estimate.returns == 1].min() > 0 > estimate.advantages[estimate.returns == 0].max()
    assert estimate.metrics["value_loss"] == pytest.approx(0.25, abs=0.2)


def test_an_estimate_is_kept_for_the_same_model_data_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, keep = recorded(), tmp_path / "values"
    model = trained_model(tmp_path / "m", data)
    first = estimate_advantages(model, data, keep=keep)
    with monkeypatch.context() as patch:
        patch.setattr(advantages, "encode_frames", None)
        again = estimate_advantages(model, recorded(), keep=keep)
        with pytest.raises(TypeError):
            estimate_advantages(model, data, ValueSettings(returns_lambda=0.5), keep=keep)
    for mine, kept in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, kept)
    (keep / "values.safetensors").write_bytes(b"damaged")
    repaired = estimate_advantages(model, data, keep=keep)
    np.testing.assert_array_equal(repaired.values, first.values)
    other = estimate_advantages(model, data, ValueSettings(returns_lambda=0.5), keep=keep)
    assert (other.returns != first.returns).any()


def test_one_of_several_statistics_reads_the_states_and_an_estimate_is_kept_for_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, keep = recorded(), tmp_path / "values"
    model = small_model(tmp_path / "m", use_state=True)
    narrow = data.statistics()
    wide = {**narrow, "proprio": narrow["proprio"] | {"q01": [-9.0] * 8, "q99": [9.0] * 8}}
    model.config.norm_stats = {"narrow": narrow}
    alone = estimate_advantages(model, data, keep=keep)
    assert "unnorm_key" not in json.loads((keep / "values.json").read_text())["identity"]
    model.config.norm_stats = {"narrow": narrow, "wide": wide}
    with pytest.raises(ValueError, match=r"several data sets; give unnorm_key, one of \['narrow', 'wide'\]"):
        estimate_advantages(model, data)
    with pytest.raises(ValueError, match=r"no statistics for unnorm_key 'wid'\. Did you mean 'wide'"):
        estimate_advantages(model, data, unnorm_key="wid")
    found = {key: estimate_advantages(model, data, unnorm_key=key, keep=tmp_path / key) for key in ("narrow", "wide")}
    np.testing.assert_array_equal(found["narrow"].values, alone.values)
    assert (found["wide"].values != alone.values).any()
    monkeypatch.setattr(advantages, "encode_frames", None)
    again = estimate_advantages(model, data, unnorm_key="wide", keep=tmp_path / "wide")
    np.testing.assert_array_equal(again.values, found["wide"].values)
    with pytest.raises(TypeError):
        estimate_advantages(model, data, unnorm_key="narrow", keep=tmp_path / "wide")


def test_metrics_are_finite() -> None:
    right = Advantages(np.array([1.0, 0.0]), np.array([0.75, 0.25]))
    assert right.metrics == pytest.approx({"value_loss": 0.0625, "explained_variance": 0.75, "advantage_std": 0.25})
    alike = right._replace(returns=np.zeros(2))
    assert alike.metrics["explained_variance"] == 0.0  # JSON has no NaN


# ------------------------------------------------------------------------------------------------------------- AWR


def test_weights_are_exponentials_of_advantages_up_to_the_largest() -> None:
    data = recorded()
    values = np.zeros(len(data))
    values[:3] = [0.5 * math.log(3), -0.5 * math.log(4), 7.0]
    metrics = AWR(beta=0.5, max_weight=10.0).prepare(data, estimate_of(values))
    assert data.weights is not None
    np.testing.assert_allclose(data.weights[:4], [3.0, 0.25, 10.0, 1.0], rtol=1e-6)
    assert metrics["clipped_weights"] == pytest.approx(1 / 96)
    assert metrics["effective_sample_size"] == pytest.approx(effective_sample_size(data.weights), rel=1e-6)


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size(np.full(7, 3.0)) == pytest.approx(1.0)
    assert effective_sample_size(np.array([0.0, 0.0, 0.0, 9.0])) == pytest.approx(0.25)
    assert effective_sample_size(np.array([1.0, 3.0])) == pytest.approx(16 / 10 / 2)


def test_a_folder_of_something_else_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "notes.txt").write_text("mine")
    data = recorded()
    monkeypatch.setattr(advantages, "encode_frames", None)
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt'"):
        estimate_advantages(trained_model(tmp_path / "m", data), data, keep=tmp_path / "keep")


# ------------------------------------------------------------------------------------------------------------ tags


def test_frames_are_tagged_though_more_than_the_share_are_the_best() -> None:
    data = recorded()
    values = np.repeat([0.6, 0.5, -0.5, -0.6], [40, 8, 24, 24])
    assert TaggedCloning(share=0.3).prepare(data, estimate_of(values)) == {"tagged": 40 / 96}
    assert data.tags is not None
    assert data.tags.tagged[:40].all()


def test_the_better_share_of_each_task_is_tagged() -> None:
    episodes = [*attempts(1), attempt("lift the cup", RIGHT, True), attempt("lift the cup", LEFT, False)]
    data = recorded(episodes)
    values = np.arange(48.0)
    values[24:] += 1000  # every frame of the second task is better than any of the first
    metrics = TaggedCloning(share=0.25).prepare(data, estimate_of(values))
    assert data.tags is not None
    assert np.flatnonzero(data.tags.tagged).tolist() == [*range(18, 24), *range(42, 48)]
    assert metrics == {"tagged": 0.25}


def test_a_tagged_examples_prompt_is_the_one_of_the_exported_checkpoint(tmp_path: Path) -> None:
    trainer = learner(tmp_path / "m", TaggedCloning(word="very well"), word="somehow")
    assert trainer.data.tags is not None
    frame = np.flatnonzero(trainer.data.tags.tagged)[:1]
    (text,) = word_examples(trainer.data[frame], 0, 0, 0.0, (), Tags("very well", np.ones(1, bool))).instructions
    trained_on = trainer.model.tokenize([text])[0]
    untagged = trainer.model.processor.fingerprint()
    trainer.export().save_pretrained(tmp_path / "tagged")
    processor = load_processor(tmp_path / "tagged")
    assert (
        processor.build_prompt("Push the plate")
        == "In: What action should the robot take to push the plate very well?\nOut:"
    )
    np.testing.assert_array_equal(processor.tokenize(["push the plate"])[0], trained_on)
    np.testing.assert_array_equal(processor.codec().encode_prompt("push the plate")[0], trained_on[0])
    assert processor.fingerprint() != untagged
    processor.config.prompt_word = ""
    assert processor.fingerprint() == untagged


def test_words_are_dropped_anew_at_every_step_and_never_added() -> None:
    data = recorded()
    tags = Tags("well", np.arange(len(data)) % 2 == 0, dropout=0.25)
    data.tag(tags)
    examples = data[np.arange(len(data))]
    told = [word_examples(examples, step, 0, 0.0, (), tags).instructions for step in range(50)]
    said = np.array([[text.endswith(" well") for text in step] for step in told])
    assert not said[:, ~tags.tagged].any()
    assert said[:, tags.tagged].mean() == pytest.approx(0.75, abs=0.03)
    assert len(np.unique(said, axis=0)) == 50


# ---------------------------------------------------------------------------------------------------- all of them


def likeliest(model: OpenVLA) -> float:
    """The first direction of the action that the model takes where all attempts began."""
    seen = attempt("push the plate", RIGHT, True)
    action = model.predict_action(seen.images["image"][:1], ["push the plate"], state=seen.state[:1])
    return float(action[0, 0, 0])


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_what_succeeded_is_preferred(tmp_path: Path, method: OfflineMethod) -> None:
    three_fail = [attempt("push the plate", LEFT, False)] * 3
    data = recorded([attempt("push the plate", RIGHT, True), *three_fail] * 2)
    model = trained_model(tmp_path, data)
    estimate = estimate_advantages(model, data, ValueSettings(n_epochs=1)) if method.needs_advantages else None
    method.prepare(data, estimate)
    trainer = SupervisedTrainer(
        model, data, n_steps=40, batch_size=16, learning_rate=2e-3, warmup_steps=5, validation_share=0.0
    )
    trainer.train()
    assert likeliest(trainer.export()) > 0.5


@pytest.mark.parametrize("method", METHODS[1:], ids=IDS[1:])
def test_stopping_and_resuming_changes_nothing(tmp_path: Path, method: OfflineMethod) -> None:
    through = learner(tmp_path / "a", method)
    through.train()
    stopped = learner(tmp_path / "b", method)
    stopped.train(2)
    stopped.save(tmp_path / "checkpoint")
    resumed = learner(tmp_path / "c", method)
    resumed.load(tmp_path / "checkpoint")
    resumed.train()
    weights, again = through.export().state_dict(), resumed.export().state_dict()
    assert all(th.equal(tensor, again[name]) for name, tensor in weights.items())


def test_a_resumed_run_needs_the_same_tags(tmp_path: Path) -> None:
    learner(tmp_path / "a", TaggedCloning()).save(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"tags \['well', 0.1, '\w{16}'\] to \['nicely', 0.1, .*resume with the same"):
        learner(tmp_path / "b", TaggedCloning(word="nicely")).load(tmp_path / "checkpoint")


def test_success_is_told_by_the_goal_and_not_by_the_last_reward() -> None:
    until_done = np.append(np.full(11, -1, np.float32), np.float32(0))  # a step costs 1 until the goal holds
    paid = dataclasses.replace(attempt("push the plate", RIGHT, True), rewards=until_done)
    close = dataclasses.replace(attempt("push the plate", LEFT, False), rewards=np.full(12, 0.5, np.float32))
    data = recorded([paid, close])
    FilteredCloning().prepare(data)
    assert data.weights is not None
    np.testing.assert_array_equal(data.weights, np.repeat([1, 0], 12))


def test_filtered_cloning_never_shows_a_failure(tmp_path: Path) -> None:
    trainer = learner(tmp_path, FilteredCloning(), validation_share=0.5)
    frames = np.concatenate([trainer.train_frames, trainer.validation_frames])
    assert (trainer.data.actions[frames, 0] == np.float32(RIGHT)).all()
    assert len(frames) == len(trainer.data) // 2


# ----------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_data_without_rewards_or_successes_teach_nothing(method: OfflineMethod) -> None:
    with pytest.raises(ValueError, match=r"records no next\.reward.*record it with `libero-vla record --policy MODEL"):
        method.prepare(ActionChunks(demonstrations(), image_size=SIZE, chunk_size=2))
    with pytest.raises(ValueError, match="None of the 3 episodes succeeds"):
        method.prepare(recorded([attempt("push the plate", LEFT, False)] * 3))
    mixed = [attempt("push the plate", RIGHT, True), dataclasses.replace(attempts(1)[1], rewards=None)]
    with pytest.raises(ValueError, match=r"records no next\.reward"):
        method.prepare(recorded(mixed))


@pytest.mark.parametrize("method", METHODS[1:], ids=IDS[1:])
def test_data_without_failures_tell_nothing_apart(tmp_path: Path, method: OfflineMethod) -> None:
    data = recorded([attempt("push the plate", RIGHT, True)] * 3)
    with pytest.raises(ValueError, match="All 3 episodes succeed, so there is nothing to tell apart; record failures"):
        method.prepare(data, estimate_of(np.ones(len(data))))
    with pytest.raises(ValueError, match="All 3 episodes succeed"):
        estimate_advantages(small_model(tmp_path), data)
    with pytest.raises(ValueError, match="give what estimate_advantages"):
        method.prepare(recorded())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AWR(beta=0), "beta"),
        (lambda: AWR(beta=-1.0), "beta"),
        (lambda: AWR(max_weight=0), "max_weight"),
        (lambda: TaggedCloning(share=1.0), "share"),
        (lambda: TaggedCloning(dropout=1.0), "dropout"),
        (lambda: TaggedCloning(word=""), "word is empty"),
        (lambda: TaggedCloning(word="Well"), "expected a word or a few in lower case"),
        (lambda: ValueSettings(gamma=1.1), "gamma"),
        (lambda: ValueSettings(n_folds=1), "n_folds"),
        (lambda: AWR(beta=1e-9).prepare(recorded(), estimate_of(np.full(96, -1.0))), "leaves each frame the weight 0"),
        (lambda: recorded().tag(Tags("well", np.ones(3, bool))), r"'well' and bool \(3,\); expected a word and 96"),
    ],
)
def test_wrong_settings_are_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
