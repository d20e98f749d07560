"""Episodes to look at, with a scorer beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.watching import SCORED, at_random, watch
from vla_agent.process_reward.interface import RewardModelError

SMALL: dict[str, Any] = {"cameras": ("agentview",), "image_size": 32, "renderer": "fast", "max_steps": 2}


class Scorer:
    """Answers one number."""

    def __init__(self, answer: float, camera: str = "image") -> None:
        self.answer, self.camera, self.image_size = answer, camera, 16

    def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
        assert images.shape[1:] == (16, 16, 3)
        assert len(images) <= SCORED, "a large model's memory is that of a few frames"
        return np.full(len(images), self.answer)


def test_scores_of_the_scorers_own_camera_and_size_are_shown() -> None:
    for camera in ("image", "wrist_image"):
        options = SMALL | {"max_steps": SCORED + 2}
        episode = watch("LIBERO-Spatial-v0", EpisodeStart(0, 1), at_random, scorer=Scorer(0.5, camera), **options)
        np.testing.assert_array_equal(episode.plots["score"]["score"], [0.5] * (SCORED + 3))


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (
            Scorer(0.5, "front_image"),
            "The Scorer looks at 'front_image', which the environment does not show; it has im",
        ),
        (Scorer(7.0), r"Scorer\.score gave 7\.0 for '.*'; expected scores in \[0, 1\]"),
    ],
)
def test_what_is_no_scorer_of_these_frames_is_refused(scorer: Scorer, told: str) -> None:
    with pytest.raises(RewardModelError, match=told):
        watch("LIBERO-Spatial-v0", EpisodeStart(0, 1), at_random, scorer=scorer, **SMALL)
