"""What a training changed, in words and as a film."""

from __future__ import annotations

import numpy as np

from vla_agent.evaluation.before_after import FILM_SIZE, MARGIN, _Side, compose, describe_change, telling_trial
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.evaluation.trials import Trial


def episodes(task_id: int, outcomes: str, first: int = 0) -> list[EpisodeResult]:
    """One episode per letter, "+" for a success."""
    return [EpisodeResult(task_id, first + i, letter == "+", 100 + i) for i, letter in enumerate(outcomes)]


def test_a_change_is_told_with_intervals_and_the_paired_test() -> None:
    before, after = episodes(3, "+" * 13 + "-" * 7), episodes(3, "+" * 12 + "-" + "+" * 6 + "-")
    told = describe_change(before, after, {3: "pick up the bowl"}).splitlines()
    assert told == [
        "  task 3: pick up the bowl",
        "before: 13 of 20 (43 to 82 %), after: 18 of 20 (70 to 97 %)",
        "paired: 6 gained, 1 lost, p = 0.12 (McNemar, exact)",  # 2 * (1 + 7) / 2**7
    ]


def test_several_tasks_have_a_line_each_and_the_verdict_comes_last() -> None:
    before = episodes(1, "+-") + episodes(2, "--")
    after = episodes(1, "++") + episodes(2, "+-")
    told = describe_change(before, after, {1: "take it", 2: "leave it"}).splitlines()
    assert told[0] == "  task 1: 1 of 2 -> 2 of 2  take it"
    assert told[1] == "  task 2: 0 of 2 -> 1 of 2  leave it"
    assert told[2].startswith("before: 1 of 4")
    assert told[3].startswith("paired: 2 gained, 0 lost, p = 0.5")


def test_the_film_is_of_an_episode_that_failed_before_and_succeeds_after() -> None:
    assert telling_trial(episodes(0, "+--"), episodes(0, "+-+")) == Trial(0, 2)
    assert telling_trial(episodes(0, "++"), episodes(0, "-+")) == Trial(0, 1)  # else a success
    assert telling_trial(episodes(0, "--"), episodes(0, "--")) == Trial(0, 0)  # else the first
    assert telling_trial(episodes(0, "-", first=-5), episodes(0, "+", first=-5)).start.placement_seed == 4


def test_the_shorter_side_of_a_film_waits_at_its_last_frame() -> None:
    def frames(n: int, value: int) -> list[np.ndarray]:
        return [np.full((FILM_SIZE, FILM_SIZE, 3), value + i, np.uint8) for i in range(n)]

    video = compose([_Side(frames(6, 10), False, 220), _Side(frames(2, 100), True, 90)], "pick up the bowl")
    assert video.shape == (6 + 3, FILM_SIZE + MARGIN, 2 * FILM_SIZE, 3)
    left, right = video[:, -1, 0, 0], video[:, -1, -1, 0]
    assert left.tolist() == [10, 11, 12, 13, 14, 15, 15, 15, 15]
    assert right.tolist() == [100] + [101] * 8
    caption = video[:, :MARGIN, FILM_SIZE:]
    assert not np.array_equal(caption[0], caption[1])  # "after", then "after: succeeded in 4.5 s"
    np.testing.assert_array_equal(caption[1], caption[-1])
    assert (caption[1][..., 1] > caption[1][..., 0]).any()  # which is green
