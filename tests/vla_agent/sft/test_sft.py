"""Behaviour cloning learns, resumes to the bit, and refuses data that do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from cloning import SIZE, demonstrations, episode, small_model
from safetensors.torch import load_file, save

from libero_gym.demonstrations.episodes import Episode
from vla_agent.action_tokens import action_table, normalize, to_bins
from vla_agent.augmentation import Augmentation
from vla_agent.openvla import OpenVLA
from vla_agent.sft.data import ActionChunks, moving_frames, next_gripper_change
from vla_agent.sft.losses import bin_targets, next_token_loss, regression_loss
from vla_agent.sft.settings import SFTSettings, learning_rate_at
from vla_agent.sft.split import split_frames
from vla_agent.sft.trainer import NonFiniteLossError, SupervisedTrainer


@pytest.fixture
def data() -> ActionChunks:
    return ActionChunks(demonstrations(), image_size=SIZE, chunk_size=2)


def trainer(folder: Path, data: ActionChunks, **settings: Any) -> SupervisedTrainer:
    defaults: dict[str, Any] = {"n_steps": 6, "batch_size": 8, "ema_decay": 0.9, "warmup_steps": 2, "bin_sigma": 2.0}
    return SupervisedTrainer(small_model(folder), data, **defaults | settings)


# ------------------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize("pad_chunks", [False, True])
def test_a_chunk_ends_with_its_episode(pad_chunks: bool) -> None:
    data = ActionChunks(demonstrations(), image_size=SIZE, chunk_size=2, pad_chunks=pad_chunks)
    last = data[np.array([19, 20])]  # the first episode's last frame, and the second's first
    np.testing.assert_array_equal(last.valid, [[True, pad_chunks], [True, True]])
    np.testing.assert_array_equal(last.actions[:, :, 0], [[-1, -1], [-0.5, -0.5]])


def test_the_gripper_is_turned_into_openvlas_and_back(data: ActionChunks) -> None:
    examples = data[np.array([0, 19])]
    np.testing.assert_array_equal(examples.actions[:, 0, 6], [1.0, 0.0])  # open first, closed at the end
    stats = data.statistics()["action"]
    bins = to_bins(examples.actions, stats)
    np.testing.assert_array_equal(action_table(stats)[6, bins[:, 0, 6]], [-1.0, 1.0])  # the environment's


def test_normalised_actions_come_back_within_half_a_bin() -> None:
    stats = {"q01": [-0.5] * 6 + [0.0], "q99": [0.9] * 6 + [1.0], "mask": [True] * 6 + [False]}
    actions = np.random.default_rng(0).uniform(-0.5, 0.9, (100, 7))
    actions[:, 6] = 1.0
    bins = to_bins(actions, stats)
    decoded = np.take_along_axis(action_table(stats).T, bins, axis=0)
    assert np.abs(decoded - actions)[:, :6].max() <= 0.7 / 255 + 1e-9
    np.testing.assert_allclose(normalize(np.full(7, 2.0), stats)[:6], 1.0)


def test_the_keyframe_is_where_the_gripper_next_changes() -> None:
    state = np.zeros((6, 8))
    state[:, 0] = np.arange(6)
    commands = np.array([-1, -1, 1, 1, -1, -1])
    np.testing.assert_array_equal(next_gripper_change(state, commands)[:, 0], [2, 2, 2, 4, 4, 5])


def test_frames_of_waiting_before_a_grasp_are_cut() -> None:
    state = np.zeros((9, 8))
    state[:, 0] = [0.20, 0.10, 0.005, 0.01, 0.0, 0.0, 0.0, 0.05, 0.10]  # arrives at frame 2, closes at 5
    commands = np.array([-1, -1, -1, -1, -1, 1, 1, 1, 1])
    assert moving_frames(state, commands).tolist() == [True, True, True, False, False, True, True, True, True]
    state[:, 2] = [0, 0, 0.02, 0.02, 0, 0, 0, 0, 0]  # still too high at 2 and 3
    assert moving_frames(state, commands).all()
    assert moving_frames(state, np.ones(9)).all()


def test_statistics_leave_the_gripper_as_it_is(data: ActionChunks) -> None:
    stats = data.statistics()
    assert stats["action"]["mask"] == [True] * 6 + [False]
    assert stats["num_transitions"] == 100
    assert stats["num_trajectories"] == 5
    assert stats["action"]["q01"][0] == pytest.approx(-1.0)
    assert len(stats["proprio"]["q99"]) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": np.zeros((20, 6), np.float32)},
            "actions of shape .20, 6.; expected .20, 7., a row for each action",
        ),
        ({"state": np.full((20, 8), np.nan, np.float32)}, "NaN or infinity in its states"),
        ({"images": {"wrist_image": np.zeros((20, SIZE, SIZE, 3), np.uint8)}}, "no frames of 'image'.*'wrist_image'"),
        ({"fps": 10}, "mix frame rates .*has 20.*has 10"),
    ],
)
def test_bad_episodes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionChunks([episode("push", 0.0), episode("pull", 0.5, **changes)], image_size=SIZE)


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="no demonstrations"):
        ActionChunks([], image_size=SIZE)


def with_gripper(*values: float) -> list[Episode]:
    """Two episodes whose gripper commands run through some values."""
    commands = np.resize(np.repeat(values, 2), 20)
    pushes = [episode("push", 0.5), episode("push", -0.5)]
    for push in pushes:
        push.actions[:, 6] = commands
    return pushes


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ((1, 0), "never negative: the hand would never open"),
        ((0.98, 0.02), "lies in 0.02 to 0.98 and is never negative"),
        ((0.3, 0), "never open"),
        ((0, -1), "never positive: the hand would never close"),
        ((0,), "is 0 in every frame, which neither opens nor closes"),
    ],
)
def test_commands_of_another_convention_are_refused(commands: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*-1 opens the gripper and \+1 closes it.*1 - 2 \* actions"):
        ActionChunks(with_gripper(*commands), image_size=SIZE)


@pytest.mark.parametrize(("command", "never"), [(-1, "closes"), (1, "opens")])
def test_a_hand_that_never_moves_is_warned_of_and_learned(command: int, never: str) -> None:
    with pytest.warns(UserWarning, match=f"the hand never {never}"):
        data = ActionChunks(with_gripper(command), image_size=SIZE)
    assert set(data.actions[:, 6]) == {float(command < 0)}


def test_one_episode_without_a_grasp_among_others_is_no_matter(recwarn: pytest.WarningsRecorder) -> None:
    ActionChunks([*with_gripper(-1), *demonstrations()], image_size=SIZE)
    assert not [warning for warning in recwarn.list if issubclass(warning.category, UserWarning)]


# ------------------------------------------------------------------------------------------------------------ loss


def test_smoothed_targets_are_distributions_around_the_right_bin() -> None:
    targets = bin_targets(2.0)
    th.testing.assert_close(targets.sum(1), th.ones(256))
    assert (targets.argmax(1) == th.arange(256)).all()
    assert targets[100, 102] / targets[100, 100] == pytest.approx(np.exp(-0.5), rel=1e-5)
    th.testing.assert_close(bin_targets(0.0), th.eye(256))


def test_the_learning_rate_warms_up_and_falls() -> None:
    settings = SFTSettings(n_steps=110, warmup_steps=10, learning_rate=1.0)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(60, settings) == pytest.approx(0.505)
    assert learning_rate_at(110, settings) == pytest.approx(0.01)


def test_it_learns_to_see_the_direction(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(
        tmp_path / "m", data, n_steps=60, batch_size=16, learning_rate=2e-3, validation_share=0.0, keyframe_coef=0.1
    )
    learner.train()
    model = learner.export()
    images = np.stack([np.full((SIZE, SIZE, 3), int(128 + 100 * d), np.uint8) for d in (-1.0, 1.0)])
    state = np.tile(data.state[5], (2, 1))
    actions = model.predict_action(images, "push the plate", state=state)
    assert actions[0, 0, 0] < -0.5
    assert actions[1, 0, 0] > 0.5


@pytest.mark.parametrize("pad_chunks", [False, True])
def test_parts_of_a_minibatch_give_its_gradient(tmp_path: Path, pad_chunks: bool) -> None:
    """Parts that hold other numbers of learned actions, and augmented images, add up to the whole."""
    data = ActionChunks(demonstrations(), image_size=SIZE, chunk_size=2, pad_chunks=pad_chunks)
    data.reweigh(np.linspace(0, 2, len(data)))
    augmentation = Augmentation(shift=2, brightness=0.1)
    frames = np.array([18, 19, 39, 59, 0, 1, 2, 3])  # the first half ends with its episodes
    gradients, metrics = [], []
    for name, size in (("whole", 8), ("halves", 4), ("quarters", 2)):
        learner = trainer(tmp_path / name, data, micro_batch_size=size, keyframe_coef=0.5, augmentation=augmentation)
        batch = learner._batch(data[frames], th.Generator().manual_seed(0))
        metrics.append(learner._pass(batch, learn=True))
        gradients.append([p.grad for p in learner._trained.values()])
    for other, found in zip(gradients[1:], metrics[1:], strict=True):
        np.testing.assert_allclose(found, metrics[0], rtol=1e-5)
        for mine, whole in zip(other, gradients[0], strict=True):
            th.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-6)


def test_an_example_of_weight_two_counts_as_two(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(tmp_path / "m", data, keyframe_coef=0.5)
    twice = learner._pass(learner._batch(data[np.array([3, 30, 30])]), learn=False)
    data.reweigh(np.where(np.arange(len(data)) == 30, 2.0, 1.0))
    weighted = learner._pass(learner._batch(data[np.array([3, 30])]), learn=False)
    np.testing.assert_allclose(weighted, twice, rtol=1e-5)


def gradient(learner: SupervisedTrainer, frames: np.ndarray) -> th.Tensor:
    """What a step would follow, flat."""
    learner.optimizer.zero_grad(set_to_none=True)
    learner._pass(learner._batch(learner.data[frames]), learn=True)
    return th.cat([p.grad.flatten() for p in learner._trained.values() if p.grad is not None])


def test_small_minibatches_weigh_as_large_ones(tmp_path: Path, data: ActionChunks) -> None:
    """A minibatch that holds a bad frame alone does not learn it in full: gradients are unbiased at any size."""
    frames = np.array([3, 30, 57, 80])
    data.reweigh(np.isin(np.arange(len(data)), frames) * np.linspace(0.05, 8, len(data)))
    learner = trainer(tmp_path / "m", data, validation_share=0.0)
    alone = th.stack([gradient(learner, frames[[row]]) for row in range(4)])
    th.testing.assert_close(alone.mean(0), gradient(learner, frames), rtol=1e-3, atol=1e-5)
    data.reweigh(None)
    plain = gradient(trainer(tmp_path / "plain", data), frames[:1])
    assert alone[0].norm() < 0.1 * plain.norm()


def test_next_token_loss_by_hand() -> None:
    log_probs = th.log(th.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [0.2, 0.8]]]))
    bins, weights = th.tensor([[0, 0], [1, 1]]), th.tensor([[1.0, 0.0], [3.0, 0.0]])
    expected = (np.log(2) + 3 * np.log(1 / 0.9)) / 4
    assert next_token_loss(log_probs, bins, weights, bin_targets(0, 2)).item() == pytest.approx(expected)
    part = next_token_loss(log_probs[:1], bins[:1], weights[:1], bin_targets(0, 2), th.tensor(4.0))
    assert part.item() == pytest.approx(np.log(2) / 4)


def test_regression_loss_by_hand() -> None:
    predicted, target = th.tensor([[1.0, 2.0], [0.0, 0.0]]), th.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert regression_loss(predicted, target, th.tensor([1.0, 3.0])).item() == pytest.approx((1 * 2.5 + 3 * 1) / 4)


@pytest.mark.parametrize(
    "weights", [np.ones(3), np.full(100, -1.0), np.zeros(100), np.full(100, np.nan)], ids=["few", "neg", "none", "nan"]
)
def test_weights_that_mean_nothing_are_refused(data: ActionChunks, weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected 100 finite numbers of at least 0"):
        data.reweigh(weights)


def test_a_resumed_run_needs_the_same_weights(tmp_path: Path, data: ActionChunks) -> None:
    trainer(tmp_path / "a", data).save(tmp_path / "checkpoint")
    data.reweigh(np.arange(100))
    with pytest.raises(ValueError, match=r"weights None to '\w{16}'.*resume with the same"):
        trainer(tmp_path / "b", data).load(tmp_path / "checkpoint")


def test_stopping_and_resuming_changes_nothing(tmp_path: Path, data: ActionChunks) -> None:
    augmentation = Augmentation(shift=2, brightness=0.1)
    through = trainer(tmp_path / "a", data, augmentation=augmentation)
    through.train()
    stopped = trainer(tmp_path / "b", data, augmentation=augmentation)
    stopped.train(3)
    stopped.save(tmp_path / "checkpoint")
    resumed = trainer(tmp_path / "c", data, augmentation=augmentation)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step == 3
    resumed.train()
    for name, tensor in through.export().state_dict().items():
        th.testing.assert_close(tensor, resumed.export().state_dict()[name], rtol=0, atol=0)


def test_resuming_names_what_changed(tmp_path: Path, data: ActionChunks) -> None:
    trainer(tmp_path / "a", data).save(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"batch_size 8 to 4.*resume with the same"):
        trainer(tmp_path / "b", data, batch_size=4).load(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint of a fine-tuning"):
        trainer(tmp_path / "b", data).load(tmp_path / "b")


def test_another_start_or_other_data_are_not_gone_on_with(tmp_path: Path, data: ActionChunks) -> None:
    trainer(tmp_path / "a", data).save(tmp_path / "checkpoint")
    other = small_model(tmp_path / "b")
    with th.no_grad():
        next(other.parameters()).add_(0.01)
    with pytest.raises(ValueError, match=r"model '\w{16}' to '\w{16}'.*resume with the same"):
        SupervisedTrainer(other, data, n_steps=6, batch_size=8, ema_decay=0.9, warmup_steps=2, bin_sigma=2.0).load(
            tmp_path / "checkpoint"
        )
    same_length = ActionChunks(
        [episode("push the plate", direction) for direction in (-1.0, -0.5, 0.0, 0.5, 0.9)],
        image_size=SIZE,
        chunk_size=2,
    )
    with pytest.raises(ValueError, match=r"data '\w{16}' to '\w{16}'.*resume with the same"):
        trainer(tmp_path / "c", same_length).load(tmp_path / "checkpoint")
    older = json.loads((tmp_path / "checkpoint" / "trainer.json").read_text())
    for name in ("model", "data"):  # as checkpoints of before told neither
        del older["identity"][name]
    (tmp_path / "checkpoint" / "trainer.json").write_text(json.dumps(older))
    trainer(tmp_path / "d", data).load(tmp_path / "checkpoint")


@pytest.mark.parametrize("seed", range(8))
def test_a_few_successes_are_not_all_held_out(seed: int) -> None:
    succeeded = [index == 4 for index in range(20)]
    data = ActionChunks(
        [
            dataclasses.replace(one, rewards=np.append(np.zeros(19, np.float32), float(success)), success=success)
            for one, success in zip(demonstrations() * 4, succeeded, strict=True)
        ],
        image_size=SIZE,
    )
    frames, held_out = split_frames(data, 0.2, seed)
    assert set(range(80, 100)) < set(frames)
    assert len(held_out) == 20 * int(19 * 0.2)
    assert len(frames) + len(held_out) == len(data)
    data.reweigh(np.repeat(succeeded, 20))
    frames, held_out = split_frames(data, 0.2, seed)
    assert (list(frames), len(held_out)) == (list(range(80, 100)), 0)


def test_episodes_that_are_all_alike_are_split_by_one_order(data: ActionChunks) -> None:
    """As they always were, so that earlier runs go on."""
    frames, held_out = split_frames(data, 0.4, 3)
    chosen = np.random.default_rng(3).permutation(5)[:2]
    np.testing.assert_array_equal(held_out, np.flatnonzero(np.isin(data.episode_ids, chosen)))
    np.testing.assert_array_equal(frames, np.flatnonzero(~np.isin(data.episode_ids, chosen)))


def test_adapters_and_their_dropout_depend_on_the_seed_alone(tmp_path: Path, data: ActionChunks) -> None:
    def adapted(name: str) -> SupervisedTrainer:
        th.manual_seed(len(name))  # what torch drew before is no matter
        return trainer(tmp_path / name, data, lora={"r": 2, "dropout": 0.3}, validation_share=0.25)

    through, stopped, resumed = adapted("a"), adapted("ab"), adapted("abc")
    state = th.get_rng_state()
    through.train(callback=lambda step, metrics: through.validate())  # looking changes nothing, either
    assert through.validate() == through.validate()
    assert th.equal(th.get_rng_state(), state)
    stopped.train(3)
    stopped.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    resumed.train()
    for name, weights in through._trained.items():
        th.testing.assert_close(resumed._trained[name], weights, rtol=0, atol=0)


def test_damaged_checkpoints_are_told(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(tmp_path / "a", data)
    learner.train(1)
    learner.save(tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "trainer.safetensors")
    moment = next(name for name in whole if name.startswith("exp_avg|"))
    damage: dict[str, tuple[str, bytes]] = {
        "no JSON": ("trainer.json", b"{"),
        "expected an object": ("trainer.json", b"[]"),
        "step is missing": ("trainer.json", b"{}"),
        r"trainer\.safetensors' is damaged": ("trainer.safetensors", b"cut"),
        "is missing or has another shape": ("trainer.safetensors", save({**whole, moment: th.zeros(3)})),
        "NaN or infinity": ("trainer.safetensors", save({**whole, moment: whole[moment] + float("nan")})),
    }
    for match, (name, content) in damage.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / match[:8].strip()))
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=match):
            learner.load(folder)


def test_the_export_is_the_average_and_training_goes_on_unchanged(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(tmp_path / "a", data)
    learner.train(3)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    exported = learner.export().state_dict()
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    th.testing.assert_close(exported[name], learner._average[name], rtol=0, atol=0)
    assert not th.equal(exported[name], before[name])
    for key, tensor in learner.model.state_dict().items():
        assert th.equal(tensor, before[key])


def test_adapters_are_merged_into_the_export(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(tmp_path / "a", data, lora={"r": 2}, ema_decay=0.0, learning_rate=1e-2)
    learner.train(3)
    exported = learner.export()
    exported.save_pretrained(tmp_path / "merged")  # strict by name: nothing of the adapters is left
    loaded = OpenVLA.from_pretrained(tmp_path / "merged")
    inputs = learner._inputs(learner._batch(data[np.arange(4)]))
    bins = th.zeros(4, 14, dtype=th.int64)
    with th.no_grad():
        expected = learner.model.score_actions(**inputs, bins=bins).logits
        got = loaded.score_actions(**inputs, bins=bins).logits
    th.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_an_export_copies_to_the_host_and_writes_nothing_on_the_device(
    tmp_path: Path, data: ActionChunks, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy where the model is would need its memory twice, after the last step of a training that just fitted."""
    learner = trainer(tmp_path / "a", data, lora=lora)
    learner.train(2)
    versions = {name: tensor._version for name, tensor in learner.model.state_dict().items()}

    def copied_in_place(parameter: th.nn.Parameter, memo: dict[int, Any]) -> Any:
        raise th.OutOfMemoryError("a parameter was copied on its device")

    monkeypatch.setattr(th.nn.Parameter, "__deepcopy__", copied_in_place)
    exported = learner.export()
    assert {name: tensor._version for name, tensor in learner.model.state_dict().items()} == versions
    held = {tensor.data_ptr() for tensor in [*learner.model.parameters(), *learner._average.values()]}
    assert held.isdisjoint(tensor.data_ptr() for tensor in exported.parameters())


def test_the_checkpoint_carries_the_datas_statistics(tmp_path: Path, data: ActionChunks) -> None:
    trainer(tmp_path / "a", data, unnorm_key="mine").export().save_pretrained(tmp_path / "saved")
    processor = OpenVLA.from_pretrained(tmp_path / "saved").processor
    assert processor.unnorm_keys == ["mine"]
    assert processor.action_stats()["q99"] == data.statistics()["action"]["q99"]


def test_nan_stops_before_it_reaches_the_weights(tmp_path: Path, data: ActionChunks) -> None:
    learner = trainer(tmp_path / "a", data)
    learner.train(1)
    with th.no_grad():
        learner.model.projector.fc1.bias[0] = th.nan
    head = learner.model.language_model.lm_head.weight.clone()
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        learner.train(1)
    assert th.equal(head, learner.model.language_model.lm_head.weight)


def test_data_that_do_not_fit_are_refused(tmp_path: Path, data: ActionChunks) -> None:
    model = small_model(tmp_path / "m")
    with pytest.raises(ValueError, match="chunk_size=1; the model takes 28 and 2"):
        SupervisedTrainer(model, ActionChunks(demonstrations(), image_size=SIZE))
    other = data.statistics()
    other["action"] = other["action"] | {"q01": [10.0] * 7, "q99": [11.0] * 7}
    with pytest.raises(ValueError, match=r"100% of the data lies outside q01\.\.q99 .* 'action'"):
        SupervisedTrainer(model, data, statistics=other)
    with pytest.raises(ValueError, match="'proprio' do not describe 8 dimensions"):
        SupervisedTrainer(model, data, statistics=data.statistics() | {"proprio": {}})
    two = small_model(tmp_path / "two", num_images=2)
    with pytest.raises(ValueError, match="the model reads 2 camera"):
        SupervisedTrainer(two, data)


def test_states_may_lie_outside_of_the_checkpoints_own_statistics(tmp_path: Path, data: ActionChunks) -> None:
    """A policy that fails comes to where no demonstration was."""
    statistics = data.statistics()
    statistics["proprio"] = statistics["proprio"] | {"q01": [10.0] * 8, "q99": [11.0] * 8}
    model = small_model(tmp_path)
    with pytest.raises(ValueError, match=r"of the data lies outside .* 'proprio'"):
        SupervisedTrainer(model, data, statistics=statistics)
    model.config.norm_stats = {"libero": statistics}
    assert SupervisedTrainer(model, data, statistics=statistics).statistics == statistics


def test_very_few_frames_are_not_taken_for_other_data(tmp_path: Path) -> None:
    few = ActionChunks([episode("push", 0.5, 4)], image_size=SIZE, chunk_size=2)
    learner = trainer(tmp_path / "a", few, batch_size=2)
    assert learner.statistics == few.statistics()
    with pytest.raises(ValueError, match=r"50% of the data lies outside .* of the statistics given"):  # of other data
        trainer(tmp_path / "b", few, statistics=few.statistics())


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, data: ActionChunks) -> None:
    model = small_model(tmp_path / "m")
    model.processor._encode = lambda text: [1, 1100]
    with pytest.raises(ValueError, match=r"token id 1100.*different vocabularies"):
        SupervisedTrainer(model, data)


# ---------------------------------------------------------------------------------------------------- augmentation


def images(n: int = 4) -> th.Tensor:
    return th.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8))


def test_no_augmentation_is_none() -> None:
    assert th.equal(Augmentation()(images(), th.Generator()), images())


def test_a_shift_moves_whole_pixels() -> None:
    shifted = Augmentation(shift=3)(images(64), th.Generator().manual_seed(0))
    inner = {(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)}
    found = set()
    for before, after in zip(images(64), shifted, strict=True):
        fits = [(dy, dx) for dy, dx in inner if th.equal(after[4:12, 4:12], before[4 + dy : 12 + dy, 4 + dx : 12 + dx])]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) > 20


def test_a_hue_rotation_keeps_grey_and_a_full_turn_is_none() -> None:
    grey = th.full((2, 8, 8, 3), 77, dtype=th.uint8)
    assert th.equal(Augmentation(hue=0.3)(grey, th.Generator().manual_seed(0)), grey)


def test_equal_generators_vary_alike() -> None:
    vary = Augmentation(crop_area=0.8, shift=1, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, noise=0.02)
    one, same, other = (vary(images(), th.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert th.equal(one, same)
    assert not th.equal(one, other)
    assert one.dtype == th.uint8


@pytest.mark.parametrize(
    "settings",
    [{"crop_area": 0.0}, {"shift": -1}, {"noise": -0.1}, {"shift": 1.5}, {"hue": True}, {"contrast": float("nan")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        Augmentation(**settings)


def test_training_bfloat16_weights_is_warned_of(tmp_path: Path, data: ActionChunks) -> None:
    model = small_model(tmp_path).to(th.bfloat16)
    with pytest.warns(UserWarning, match=r"trained are bfloat16, in which steps .* load the model with dtype"):
        SupervisedTrainer(model, data)
