"""Labels, scorers and the report on them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from safetensors.torch import save_file

from libero_gym.common.array_files import pack
from vla_agent.common.errors import NonFiniteError
from vla_agent.common.shipped import SHIPPED_FOLDER
from vla_agent.policy.lora import LoraSettings, target_modules
from vla_agent.process_reward import RewardModelError, ScorerConfig, TinyScorer, VLMScorer, load_reward_model
from vla_agent.process_reward.episodes import PolicyEpisode, load_episodes, save_episodes
from vla_agent.process_reward.hacking import check_hacking
from vla_agent.process_reward.labels import (
    HOLDING,
    KINDS,
    NEGATIVE,
    LabelledFrames,
    _equal_parts,
    contact_sheet,
    grasps,
    label_episodes,
    split_by_episode,
)
from vla_agent.process_reward.pages import write_report
from vla_agent.process_reward.reports import auc_interval, bootstrap, report, roc_auc, time_correlation
from vla_agent.process_reward.storage import digest
from vla_agent.process_reward.tiny_scorer import split_words
from vla_agent.process_reward.training import TrainingSettings, train_tiny_scorer, train_vlm_scorer

SIZE = 32
RED, GREEN = "take the red cup", "take the green cup"


class FakeEpisode(NamedTuple):
    """The cup's colour fills the frame from below as the task is done; a failure stays half-way."""

    instruction: str
    state: np.ndarray
    images: dict[str, np.ndarray]
    success: bool
    fps: float = 20.0


def make_episode(seed: int, success: bool = True, n_frames: int = 24) -> FakeEpisode:
    rng = np.random.default_rng(seed)
    channel = int(rng.integers(2))
    images = rng.integers(0, 40, (n_frames, SIZE, SIZE, 3), dtype=np.uint8)
    for t in range(n_frames):
        share = t / (n_frames - 1) if success else 0.0
        images[t, SIZE - round(share * SIZE) :, :, channel] = 220
        if not success:
            images[t, :, :, 2] = 150
    state = np.zeros((n_frames, 8), dtype=np.float32)
    state[:, 6] = np.where(np.arange(n_frames) < n_frames // 2, 0.08, 0.02 if success else 0.0)
    return FakeEpisode((RED, GREEN)[channel], state, {"image": images}, success)


def middle_and_late(episode: Any) -> np.ndarray:
    return np.array([12, 18])


@pytest.fixture(scope="module")
def episodes() -> list[FakeEpisode]:
    return [make_episode(seed, success=seed % 3 > 0) for seed in range(45)]


@pytest.fixture(scope="module")
def examples(episodes: list[FakeEpisode]) -> LabelledFrames:
    return label_episodes(episodes, middle_and_late)


@pytest.fixture(scope="module")
def scorer(examples: LabelledFrames) -> TinyScorer:
    th.manual_seed(0)
    model = TinyScorer(ScorerConfig((GREEN, RED), SIZE, channels=(8, 16)))
    return train_tiny_scorer(model, examples, TrainingSettings(n_epochs=8, batch_size=16, learning_rate=3e-3))


def test_labels_are_balanced_and_mean_what_they_say(episodes: list[FakeEpisode], examples: LabelledFrames) -> None:
    counts = examples.counts()
    assert counts["keyframe"] == 30 * 3  # two and the last frame
    assert counts["before"] == counts["other instruction"] == counts["failure"] == 30
    assert counts["between"] == 30 * 6
    assert examples.positive.sum() == examples.negative.sum() == 90
    for index in range(len(examples)):
        episode = episodes[examples.episodes[index]]
        kind = KINDS[examples.kinds[index]]
        found = [t for t, image in enumerate(episode.images["image"]) if (image == examples.images[index]).all()]
        assert len(found) == 1
        assert examples.told[index] == episode.instruction
        if kind in ("keyframe", "before", "between"):
            assert episode.success
            assert examples.targets[index] == pytest.approx(found[0] / 23 / (1 if found[0] >= 12 else 2))
            allowed = {"keyframe": {12, 18, 23}, "before": range(12 - 5), "between": range(13, 23)}
            assert found[0] in allowed[kind]
            assert (found[0] in (12, 18, 23)) == (kind == "keyframe")
        else:
            assert examples.targets[index] == 0
        assert (examples.instructions[index] == episode.instruction) == (kind != "other instruction")
        if kind == "failure":
            assert not episode.success
            assert found[0] >= 12  # the gripper has closed


def test_more_negatives_come_as_far_as_episodes_give_them(episodes: list[FakeEpisode]) -> None:
    counts = label_episodes(episodes, middle_and_late, n_negatives=4).counts()
    assert counts["keyframe"] == 90
    assert counts["other instruction"] == 90  # every keyframe once
    assert counts["before"] == counts["failure"] == 135  # which give what is missing


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (12, [9, 9, 9], [4, 4, 4]),
        (14, [9, 9, 9], [5, 5, 4]),
        (14, [9, 2, 9], [6, 2, 6]),
        (30, [9, 2, 9], [9, 2, 9]),
        (1, [9, 9], [1, 0]),
        (0, [9], [0]),
        (5, [], []),
    ],
)
def test_equal_parts_lose_nothing_that_fits(total: int, sizes: list[int], expected: list[int]) -> None:
    assert _equal_parts(total, sizes) == expected


def test_one_keyframe_has_a_negative_though_two_kinds_could_give_it() -> None:
    pair = [make_episode(1), make_episode(2, success=False)]
    counts = label_episodes(pair, lambda episode: np.array([], dtype=int), n_negatives=1).counts()
    assert (counts["keyframe"], counts["before"], counts["failure"]) == (1, 1, 0)


# Distances of the fingers in mm over an episode of 2.5 frames a second, and where it can be seen to have failed.
FAILURES = {
    "closes on nothing": ([80, 80, 40, 1, 1, 1, 80, 80], range(2, 8)),
    "drops what it held": ([80, 30, 5, 5, 5, 1, 1, 1], range(5, 8)),
    "holds it to the end": ([80, 80, 5, 6, 5, 4, 5, 5], range(7, 8)),
    "lets go elsewhere": ([80, 5, 5, 5, 80, 80, 80, 80], range(4, 8)),
    "opens and closes": ([80, 20, 20, 60, 20, 60, 20, 20], range(1, 8)),
    "never closes": ([80, 80, 80, 80, 80, 80, 80, 80], range(7, 8)),
}


@pytest.mark.parametrize(("fingers", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_are_negative_where_they_can_be_seen(fingers: list[int], expected: range) -> None:
    failure = make_episode(0, success=False, n_frames=8)._replace(fps=2.5)
    failure.state[:, 6] = np.array(fingers) / 1000
    found = label_episodes([make_episode(1), failure], middle_and_late, n_negatives=20, n_holding=20)
    frames = {kind: found.images[found.of_kinds([kind])] for kind in ("failure", HOLDING)}
    times = {
        kind: sorted(t for image in images for t in range(8) if (failure.images["image"][t] == image).all())
        for kind, images in frames.items()
    }
    assert times["failure"] == list(expected)
    closed = [t for t in range(8) if fingers[t] < 70]
    assert times[HOLDING] == (list(range(closed[0], expected[0])) if closed else [])
    assert not found.negative[found.of_kinds([HOLDING])].any()


def test_grasps_are_those_that_hold() -> None:
    episode = make_episode(1, n_frames=12)._replace(fps=2.5)
    episode.state[:, 6] = np.array([80, 80, 30, 1, 80, 30, 6, 6, 6, 6, 80, 80]) / 1000  # on nothing first
    np.testing.assert_array_equal(grasps(episode), [6])
    np.testing.assert_array_equal(grasps(episode._replace(fps=20.0)), [])  # four frames are too short a time


def test_what_a_slow_camera_sees_is_before_by_time(episodes: list[FakeEpisode]) -> None:
    slow = [episode._replace(fps=2.5) for episode in episodes if episode.success]
    before = label_episodes(slow, middle_and_late, n_negatives=20)
    assert before.targets[before.of_kinds(["before"])].max() == pytest.approx(10 / 23 / 2)  # the grasp is frame 12


def test_labels_follow_their_seed(episodes: list[FakeEpisode]) -> None:
    first, same, other = (label_episodes(episodes, middle_and_late, seed=seed) for seed in (1, 1, 2))
    assert first.instructions == same.instructions
    np.testing.assert_array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


def test_split_leaves_no_episode_on_both_sides(examples: LabelledFrames) -> None:
    train, test = split_by_episode(examples, 0.3)
    assert not set(train.episodes) & set(test.episodes)
    assert len(train) + len(test) == len(examples)
    assert 0.2 < len(np.unique(test.episodes)) / len(np.unique(examples.episodes)) < 0.4
    assert {RED, GREEN} == set(test.instructions)
    with pytest.raises(ValueError, match="leaves one part empty"):
        split_by_episode(examples, 0.001)


def test_labels_need_a_success_and_the_camera(episodes: list[FakeEpisode]) -> None:
    with pytest.raises(ValueError, match="None of the episodes succeeded"):
        label_episodes([e for e in episodes if not e.success], middle_and_late)
    with pytest.raises(ValueError, match="no camera 'wrist_image'; it has image"):
        label_episodes(episodes, middle_and_late, camera="wrist_image")


def test_contact_sheet_is_drawn(examples: LabelledFrames, tmp_path: Path) -> None:
    contact_sheet(examples, tmp_path / "labels.png", per_kind=3)
    assert (tmp_path / "labels.png").stat().st_size > 10_000


def test_a_picture_that_cannot_be_drawn_leaves_the_older_one(
    examples: LabelledFrames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.png"
    path.write_bytes(b"older")

    def half(self: Any, to: Any, **kwargs: Any) -> None:
        Path(to).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match=r"labels\.png' was not written"):
        contact_sheet(examples, path, per_kind=3)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_epochs": 0}, "n_epochs=0 is out of range"),
        ({"batch_size": True}, "batch_size=True; expected a whole number"),
        ({"learning_rate": "a"}, "learning_rate='a'; expected a number above 0"),
        ({"others_weight": float("nan")}, "others_weight=nan; expected a number"),
        ({"augmentation": None}, "augmentation=None; expected an Augmentation"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_wrong_settings_of_a_scorers_training_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainingSettings(**settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"n_between": -1}, "n_between=-1"), ({"n_negatives": 1.5}, r"n_negatives=1\.5"), ({"seed": "a"}, "seed='a'")],
)
def test_wrong_counts_of_labels_are_told(episodes: list[FakeEpisode], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        label_episodes(episodes, middle_and_late, **given)


@pytest.mark.parametrize(
    ("images", "instructions", "message"),
    [
        (
            np.zeros((2, 32, 32, 3), np.uint8),
            ["a", "b"],
            r"uint8 \(2, 32, 32, 3\); expected uint8 \(n, 64, 64, 3\)",
        ),
        (np.zeros((2, 64, 64, 3)), ["a", "b"], r"are float64 \(2, 64, 64, 3\); expected uint8"),
        (None, ["a"], "are NoneType; expected uint8"),
        (np.zeros((2, 64, 64, 3), np.uint8), ["a"], r"instructions=\['a'\]; expected a list of 2 strings"),
        (np.zeros((1, 64, 64, 3), np.uint8), "a", "instructions='a'; expected a list of 1 strings"),
        (np.zeros((1, 64, 64, 3), np.uint8), [5], r"instructions=\[5\]; expected a list of 1 strings"),
    ],
)
def test_a_scorer_asked_wrongly_says_so(images: Any, instructions: Any, message: str) -> None:
    with pytest.raises(RewardModelError, match=message):
        TinyScorer(ScorerConfig(("a", "b"), 64, channels=(8,))).score(images, instructions)


def test_scorer_learns_progress_and_tells_instructions_apart(scorer: TinyScorer) -> None:
    for seed in range(100, 106):
        episode = make_episode(seed)
        scores = scorer.score(episode.images["image"], [episode.instruction] * 24)
        assert time_correlation(scores) > 0.8
        other = RED if episode.instruction == GREEN else GREEN
        assert scorer.score(episode.images["image"][-1:], [other])[0] < scores[-1] - 0.3


@pytest.mark.parametrize("n_epochs", [1, 2, 5, 10])
def test_a_training_may_have_any_number_of_steps(examples: LabelledFrames, n_epochs: int) -> None:
    model = TinyScorer(ScorerConfig((GREEN, RED), SIZE, channels=(8, 16)))
    some = examples.take(np.arange(20))
    train_tiny_scorer(model, some, TrainingSettings(n_epochs=n_epochs, batch_size=10 if n_epochs == 5 else 20))


def test_a_training_that_diverges_stops_with_the_weights_before(examples: LabelledFrames) -> None:
    model = TinyScorer(ScorerConfig((GREEN, RED), SIZE, channels=(8, 16)))
    with th.no_grad():
        model.head[-1].bias.fill_(th.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="The loss is nan at step 1; the weights are those before it"):
        train_tiny_scorer(model, examples, TrainingSettings(n_epochs=1))


def test_instructions_of_any_alphabet_are_told_apart() -> None:
    assert split_words("打开 抽屉!") == ["打开", "抽屉"]
    model = TinyScorer(ScorerConfig(("打开抽屉", "关上抽屉"), 16))
    assert len(model.embedding) == 2
    with pytest.raises(ValueError, match="has no words"):
        ScorerConfig(("!?",), 16)


def test_a_report_of_what_cannot_be_told_is_json_all_the_same(scorer: TinyScorer, tmp_path: Path) -> None:
    successes = [each for each in (make_episode(seed) for seed in range(12)) if each.instruction == RED][:2]
    alone = label_episodes(successes, middle_and_late)
    positive = alone.take(np.flatnonzero(alone.positive))
    found = report(scorer, positive, [make_episode(1, success=False)])
    write_report(tmp_path / "report", found, scorer, positive, successes)
    strict = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)
    assert strict["auc"] is None
    assert strict["spearman"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert "unknown" in (tmp_path / "report" / "report.md").read_text()


def test_kept_episodes_are_read_back_and_another_file_is_told(tmp_path: Path) -> None:
    made = make_episode(0)
    one = PolicyEpisode(made.instruction, made.state, made.images, np.bool_(True), 0, 1, 20.0)  # type: ignore[arg-type]
    save_episodes(tmp_path / "e.npz", [one], {"seed": 0})
    found = load_episodes(tmp_path / "e.npz", {"seed": 0})
    assert found is not None
    assert found[0].success is True
    (tmp_path / "e.npz").write_bytes(pack({"about": {"seed": 0}}, {}))
    with pytest.raises(ValueError, match=r"e\.npz' holds no episodes"):
        load_episodes(tmp_path / "e.npz", {"seed": 0})


def test_settings_of_kept_episodes_may_hold_tuples(tmp_path: Path) -> None:
    made = make_episode(0)
    one = PolicyEpisode(made.instruction, made.state, made.images, True, 0, 1, 20.0)
    save_episodes(tmp_path / "e.npz", [one], {"tasks": (1, 2)})
    assert load_episodes(tmp_path / "e.npz", {"tasks": (1, 2)}) is not None
    assert load_episodes(tmp_path / "e.npz", {"tasks": (1, 3)}) is None


GOOD_ROW = ["take it", True, 0, 0, 20.0, 6]
GOOD_ARRAYS = {"state": np.zeros((6, 8), np.float32), "image": np.zeros((6, 4, 4, 3), np.uint8)}


@pytest.mark.parametrize(
    ("rows", "arrays", "message"),
    [
        ([[*GOOD_ROW[:5], 5], [*GOOD_ROW[:5], 2]], {}, r"'state' is float32 \(6, 8\), and its episodes have 7 frames"),
        ([GOOD_ROW], {"image": np.zeros((2, 4, 4, 3), np.uint8)}, r"'image' is uint8 \(2, 4, 4, 3\)"),
        ([GOOD_ROW], {"image": np.zeros((6, 4, 4), np.uint8)}, r"'image' is uint8 \(6, 4, 4\)"),
        ([GOOD_ROW], {"state": np.zeros((6, 7), np.float32)}, r"'state' is float32 \(6, 7\)"),
        ([5], {}, "an episode is described by 5"),
        (7, {}, "int"),
        ([], {}, "its episodes have 0 frames"),
        ([[*GOOD_ROW[:5], "a"]], {}, "the number of frames='a'; expected a whole number"),
        ([[*GOOD_ROW[:5], 0], GOOD_ROW], {}, "the number of frames=0 is out of range"),
        ([["take it", 3]], {}, r"an episode is described by \['take it', 3\]"),
        ([["take it", 1, *GOOD_ROW[2:]]], {}, "success=1; expected True or False"),
    ],
)
def test_damaged_kept_episodes_are_one_sentence(
    tmp_path: Path, rows: Any, arrays: dict[str, np.ndarray], message: str
) -> None:
    (tmp_path / "e.npz").write_bytes(pack({"about": {}, "episodes": rows}, GOOD_ARRAYS | arrays))
    with pytest.raises(ValueError, match=rf"e\.npz' is damaged: .*{message}.*; remove it"):
        load_episodes(tmp_path / "e.npz", {})


def test_report_measures_it(scorer: TinyScorer, tmp_path: Path) -> None:
    unseen = [make_episode(seed, success=seed % 2 > 0) for seed in range(200, 220)]
    for episode in unseen[::4]:  # these failures hold something for a while
        episode.state[6:23, 6] = 0.02
    labelled = label_episodes(unseen, middle_and_late, n_holding=1)
    successes = [episode for episode in unseen if episode.success]
    result = report(scorer, labelled, successes, unseen)
    assert result.auc > 0.9
    assert result.auc_interval.low <= result.auc == result.auc_interval.mean <= result.auc_interval.high
    assert set(result.auc_by_kind) == {*NEGATIVE, HOLDING}
    assert result.spearman.mean > 0.8
    assert result.spearman.low <= result.spearman.mean <= result.spearman.high
    assert result.separation is not None
    assert result.separation > 0.9
    assert sum(n for _, _, n in result.calibration) == len(labelled) - result.n_examples[HOLDING] < len(labelled)
    write_report(tmp_path / "report", result, scorer, labelled, unseen[:2], {"seed": 0})
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["auc"] == result.auc
    assert written["spearman"]["n"] == len(successes)
    for name in ("quality.png", "episodes.png"):
        assert (tmp_path / "report" / name).stat().st_size > 10_000
    assert "AUC, keyframe against not" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(("gain", "suspicious"), [(0.0, True), (0.3, False)])
def test_a_score_that_rises_without_success_is_suspicious(tmp_path: Path, gain: float, suspicious: bool) -> None:
    names = "time/total_timesteps,rollout/reward_score,rollout/success_rate,train/loss"
    lines = [f"{100 * i},{0.3 + 0.02 * i},{0.5 + gain * i / 16},0" for i in range(16)]
    (tmp_path / "progress.csv").write_text("\n".join([names, *lines[:8], "900,,,1"]))
    (tmp_path / "progress_from_800.csv").write_text("\n".join([names, *lines[8:]]))
    check = check_hacking(tmp_path)
    assert check.score == pytest.approx((0.33, 0.57))
    assert check.suspicious == suspicious
    assert ("may be fooled" in str(check)) == suspicious
    assert check_hacking(tmp_path, (0.6, 0.7)).suspicious == suspicious
    fooled = check_hacking(tmp_path, (0.68, 0.22))
    assert fooled.suspicious
    assert "greedy success 0.68 to 0.22: the score rose" in str(fooled)
    (tmp_path / "progress.csv").unlink()
    (tmp_path / "progress_from_800.csv").write_text("\n".join([names, *lines[:3]]))
    with pytest.raises(ValueError, match="logs 3 iterations"):
        check_hacking(tmp_path)


def test_scores_that_are_no_numbers_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    names = "time/total_timesteps,rollout/reward_score,rollout/success_rate"
    rows = ["0,nan,0.1", *(f"{step},{0.1 * step},0.1" for step in range(1, 10))]
    (tmp_path / "progress.csv").write_text("\n".join([names, *rows]))
    assert check_hacking(tmp_path).suspicious


def test_auc_counts_pairs() -> None:
    assert roc_auc(np.array([0.9, 0.5]), np.array([0.1, 0.5, 0.6])) == pytest.approx((3 + 1.5) / 6)
    assert np.isnan(roc_auc(np.array([]), np.array([0.1])))


def test_the_mean_of_two_coin_sides_may_be_either_of_them() -> None:
    assert bootstrap([0.0, 1.0], np.random.default_rng(0)) == (0.5, 0.0, 1.0, 2)  # a quarter of the draws each
    assert bootstrap([0.25] * 5, np.random.default_rng(0)) == (0.25, 0.25, 0.25, 5)
    assert bootstrap([0.7], np.random.default_rng(0)) == (0.7, 0.7, 0.7, 1)


def test_a_mean_lies_in_its_interval_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(size=40), rng) for _ in range(200)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.89 < covered < 0.99


def test_auc_interval_is_of_episodes_not_of_frames(examples: LabelledFrames) -> None:
    """Frames of an episode that go wrong together make the interval as wide as one frame each would."""
    rng = np.random.default_rng(0)
    wrong = set(np.unique(examples.episodes)[::4])  # every fourth episode is scored the wrong way round
    right = ~np.isin(examples.episodes, sorted(wrong))
    together = auc_interval(np.where(right == examples.positive, 0.9, 0.1), examples, rng)
    alone = auc_interval(np.where((rng.random(len(examples)) < 0.75) == examples.positive, 0.9, 0.1), examples, rng)
    assert together.low < together.mean < together.high
    assert together.n == len(np.unique(examples.episodes))
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_saved_scorer_is_the_same(scorer: TinyScorer, examples: LabelledFrames, tmp_path: Path) -> None:
    scorer.save(tmp_path / "scorer")
    again = load_reward_model(tmp_path / "scorer")
    images, instructions = examples.images[:9], examples.instructions[:9]
    np.testing.assert_array_equal(again.score(images, instructions), scorer.score(images, instructions))
    assert isinstance(again, TinyScorer)
    assert again.fingerprint() == scorer.fingerprint()
    (tmp_path / "scorer" / "scorer.safetensors").write_bytes(b"nothing")
    with pytest.raises(RewardModelError, match="incomplete or damaged"):
        load_reward_model(tmp_path / "scorer")


def test_scorers_of_equal_weights_and_other_settings_have_other_fingerprints(tmp_path: Path) -> None:
    def untrained(instruction: str, camera: str = "image") -> TinyScorer:
        th.manual_seed(0)
        return TinyScorer(ScorerConfig((instruction,), 16, camera=camera, channels=(8,)))

    scorers = [untrained("take cup"), untrained("push box"), untrained("take cup", "wrist_image")]
    assert len({scorer.fingerprint() for scorer in scorers}) == 3
    scorers[0].save(tmp_path / "scorer")
    again = TinyScorer.load(tmp_path / "scorer")
    assert again.fingerprint() == scorers[0].fingerprint() == untrained("take cup").fingerprint()


def test_scorers_that_runs_have_noted_keep_their_fingerprint(tmp_path: Path) -> None:
    shipped = load_reward_model("tiny-scorer")
    assert isinstance(shipped, TinyScorer)
    assert shipped.fingerprint() == digest(shipped.state_dict())
    shipped.save(tmp_path / "copy")
    again = load_reward_model(tmp_path / "copy")
    assert isinstance(again, TinyScorer)
    assert again.fingerprint() == shipped.fingerprint()


def test_unseen_instruction_warns_once(scorer: TinyScorer, examples: LabelledFrames) -> None:
    with pytest.warns(UserWarning, match="never saw 'take the blue cup'"):
        scorer.score(examples.images[:1], ["take the blue cup"])
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score(examples.images[:1], ["take the blue cup"])


def test_frames_of_another_size_are_refused_in_training(examples: LabelledFrames) -> None:
    with pytest.raises(ValueError, match=r"the scorer takes \(48, 48, 3\)"):
        train_tiny_scorer(TinyScorer(ScorerConfig((RED,), 48, channels=(8,))), examples)


# ------------------------------------------------------------------------------- vision-language models


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised LLaVA of the published layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = (
        "<unk> <s> </s> <image> the task is take red green cup , it completed ? answer yes or no . Yes No Answer The"
    )
    vocabulary = {word: index for index, word in enumerate(words.split())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": SIZE, "width": SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size)
    processor = LlavaProcessor(image_processor, tokenizer, patch_size=8, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    th.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"])
    folder = tmp_path_factory.mktemp("vlm")
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_vlm(folder: Path, **kwargs: Any) -> VLMScorer:
    return VLMScorer.from_pretrained(folder, dtype=th.float32, **kwargs)


def test_a_vlm_of_other_weights_has_another_fingerprint(vlm_folder: Path) -> None:
    first, same, other = (load_vlm(vlm_folder) for _ in range(3))
    with th.no_grad():
        next(other.model.parameters()).add_(1)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_vlm_scores_do_not_depend_on_the_batch(vlm_folder: Path, examples: LabelledFrames) -> None:
    scorer = load_vlm(vlm_folder)
    instructions = [RED, "take the red green red green cup", GREEN]
    together = scorer.score(examples.images[:3], instructions)
    alone = [scorer.score(examples.images[i : i + 1], instructions[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert ((together > 0) & (together < 1)).all()


def test_vlm_score_is_the_probability_of_yes(vlm_folder: Path, examples: LabelledFrames) -> None:
    scorer = load_vlm(vlm_folder)
    inputs = scorer._inputs(examples.images[:1], [RED])
    with th.no_grad():
        probs = scorer.model(**inputs).logits[0, -1].softmax(-1)
    ids = {word: scorer.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes", "no", "No")}
    yes, no = probs[ids["yes"]] + probs[ids["Yes"]], probs[ids["no"]] + probs[ids["No"]]
    assert scorer.score(examples.images[:1], [RED])[0] == pytest.approx(float(yes / (yes + no)), abs=1e-6)


def test_vlm_learns_by_its_adapters_alone_and_comes_back(
    vlm_folder: Path, examples: LabelledFrames, tmp_path: Path
) -> None:
    scorer = load_vlm(vlm_folder, lora=LoraSettings(r=8, alpha=16))
    part = examples.take(np.flatnonzero(examples.kinds != KINDS.index("before"))[:24])
    before = {name: value.clone() for name, value in scorer.model.state_dict().items()}
    found = train_vlm_scorer(scorer, part, n_epochs=12, batch_size=8, learning_rate=1e-2, progress_bar=False)
    assert np.mean(found[-3:]) < np.mean(found[:3]) - 0.2
    changed = {name for name, value in scorer.model.state_dict().items() if not th.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    scorer.save(tmp_path / "scorer")
    again = load_reward_model(tmp_path / "scorer")
    np.testing.assert_allclose(
        again.score(part.images, part.instructions), scorer.score(part.images, part.instructions), atol=1e-6
    )
    with pytest.warns(UserWarning, match="never saw 'take the cup'"):
        again.score(part.images[:1], ["take the cup"])
    with pytest.raises(ValueError, match="no adapters to train"):
        train_vlm_scorer(load_vlm(vlm_folder), part)


def test_adapters_find_the_language_model_wherever_it_is(vlm_folder: Path) -> None:
    scorer = load_vlm(vlm_folder, lora=LoraSettings(r=4, target="language"))
    adapted = scorer._adapters()
    assert {name.split(".layers.")[0] for name in adapted} == {"model.language_model"}
    assert len(adapted) == 2 * 2 * 7  # two layers of seven matrices, two factors each
    with pytest.raises(ValueError, match=r"finds no language model in a ModuleDict .* it has vision"):
        target_modules(th.nn.ModuleDict({"vision": th.nn.Linear(2, 2)}), [], LoraSettings(target="language"))


def test_a_lone_space_is_no_answer() -> None:
    """Tokenizers of Llama-2's kind, LLaVA-1.5's among them, begin every text with one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_FOLDER / "tiny", trust_remote_code=False)
    assert tokenizer.encode(" yes", add_special_tokens=False)[0] == tokenizer.encode(" no", add_special_tokens=False)[0]
    scorer = VLMScorer(th.nn.Linear(1, 1), SimpleNamespace(tokenizer=tokenizer))
    no, yes = ({tokenizer.decode([token]).lower() for token in ids} for ids in scorer._answer_ids)
    assert no
    assert yes
    assert all("no".startswith(text) for text in no)
    assert all("yes".startswith(text) for text in yes)


def test_answers_that_nothing_tells_apart_are_refused() -> None:
    tokenizer = SimpleNamespace(
        pad_token="", unk_token_id=0, encode=lambda text, add_special_tokens: [7, 8], decode=lambda ids: "x"
    )
    with pytest.raises(RewardModelError, match="no first token that tells 'yes' from 'no'"):
        VLMScorer(th.nn.Linear(1, 1), SimpleNamespace(tokenizer=tokenizer))


@pytest.mark.parametrize("stdin", ["closed", "y"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_scorers_model_has_no_code_of_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: str, checked: bool
) -> None:
    """Not even without the check of the folder."""
    terminal = io.StringIO("y\n" * 20)
    if stdin == "closed":
        terminal.close()
    monkeypatch.setattr(sys, "stdin", terminal)
    if not checked:
        monkeypatch.setattr("vla_agent.process_reward.model_folder.check_model_folder", lambda path: None)
    code = f"""
from pathlib import Path
Path({str(tmp_path / "ran")!r}).mkdir()
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "foreign"
class Model(PreTrainedModel):
    config_class = Config
"""
    folder = tmp_path / "scorer" / "model"
    folder.mkdir(parents=True)
    (folder / "foreign.py").write_text(code)
    auto_map = {"AutoConfig": "foreign.Config", "AutoModelForImageTextToText": "foreign.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": auto_map}))
    processor = {"processor_class": "Foreign", "auto_map": {"AutoProcessor": "foreign.Config"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    scorer = {"class": "VLMScorer", "model": "model", "question": "{instruction}?", "camera": "image"}
    (tmp_path / "scorer" / "scorer.json").write_text(json.dumps({**scorer, "instructions": None, "lora": None}))
    save_file({}, tmp_path / "scorer" / "scorer.safetensors")
    with pytest.raises(RewardModelError, match="never run here" if checked else "no vision-language model"):
        load_reward_model(tmp_path / "scorer")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [{"text_config": {"n_layer": 10**7}}, {"vision_config": {"depths": [2, 10**7]}}, {"hidden_sizes": [10**9]}],
)
def test_a_model_without_end_is_not_built(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"} | config))
    with pytest.raises(RewardModelError, match="no model has more than"):
        VLMScorer.from_pretrained(tmp_path)


def test_no_vlm_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RewardModelError, match="no vision-language model"):
        VLMScorer.from_pretrained(tmp_path)


COMMIT = "a" * 40


@pytest.fixture
def hub_model(vlm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of the hub's model "somebody/model" in a cache of its own, with no way to the hub."""
    import huggingface_hub

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = cache / "models--somebody--model" / "snapshots" / COMMIT
    shutil.copytree(vlm_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    return snapshot


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_scorer_of_the_hubs_model_comes_back_without_the_hub(
    hub_model: Path, examples: LabelledFrames, tmp_path: Path
) -> None:
    scorer = VLMScorer.from_pretrained("somebody/model", dtype=th.float32)
    assert scorer.name == "somebody/model"
    scorer.save(tmp_path / "scorer")
    again = load_reward_model(tmp_path / "scorer")
    asked = examples.images[:2], examples.instructions[:2]
    np.testing.assert_array_equal(again.score(*asked), scorer.score(*asked))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoConfig": "foreign.Config"}}, "never run here"),
        ({"_attn_implementation": "somebody/kernel"}, "never run here"),
        ({"text_config": {"num_hidden_layers": 3000}}, "no model has more than 1024"),
    ],
)
def test_a_model_of_the_hub_is_looked_through_before_it_is_loaded(
    hub_model: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    import huggingface_hub

    asked = []

    def fetch(repo_id: str, **kwargs: Any) -> str:
        asked.append((kwargs["allow_patterns"], kwargs["revision"]))
        return str(hub_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    VLMScorer.from_pretrained("somebody/model", dtype=th.float32)
    assert [revision for _, revision in asked] == [None, COMMIT]  # the rest is of the revision that was looked through
    asked.clear()
    change_config(hub_model, **changes)
    with pytest.raises(RewardModelError, match=message):
        VLMScorer.from_pretrained("somebody/model", dtype=th.float32)
    assert asked == [(["*.json"], None)]


def test_a_scorer_that_was_sent_downloads_nothing_unless_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def fetch(repo_id: str, **kwargs: Any) -> str:
        asked.append(kwargs["local_files_only"])
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    scorer = {"class": "VLMScorer", "model": "somebody/model", "question": "{instruction}?", "camera": "image"}
    (tmp_path / "scorer.json").write_text(json.dumps({**scorer, "instructions": None, "lora": None}))
    save_file({}, tmp_path / "scorer.safetensors")
    with pytest.raises(RewardModelError, match=r"downloads nothing by itself: `hf download somebody/model` does"):
        load_reward_model(tmp_path)
    with pytest.raises(RewardModelError, match=r"\(ConnectionError\); check the spelling and the network"):
        VLMScorer.load(tmp_path, download=True)
    assert asked == [True, False]


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_with_adapters_is_refused(vlm_folder: Path, tmp_path: Path, whole: bool) -> None:
    """transformers would load the model that the adapters name, or put them into the folder's own."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "model"
    shutil.copytree(vlm_folder, folder)
    adapted = get_peft_model(load_vlm(vlm_folder).model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    if not whole:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    with pytest.raises(RewardModelError, match=r"holds adapters \(adapter_config\.json\)"):
        load_vlm(folder)
