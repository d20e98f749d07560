"""How an evaluation is run, by name. A new protocol is one more entry of `PROTOCOLS`.

Cabinets, stoves and racks are no part of LIBERO's initial states. LIBERO draws their poses at every reset, from a
generator that evaluations seed once per task; so which draw a trial stands on belongs to the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.make import PUBLISHED_IMAGE_SIZE, PUBLISHED_RENDER_SIZE, published_transform
from vla_agent.envs.suites import SuiteDescription
from vla_agent.evaluation.trials import Trial


@dataclass(frozen=True)
class EvaluationProtocol:
    """What an evaluation fixes besides the model, the tasks and the initial states.

    Attributes:
        name: Name that callers ask for it by.
        source: Where the protocol is written down; reports say so.
        fixture_seed: Seed that fixtures are drawn from.
        fixture_draw: "trial" puts official initial state j on draw j + 1; "first" puts every trial on draw 1.
            Placements were made around draw 1, so they always stand on it.
        images: "published" renders 256 pixels, and applies JPEG and a Lanczos resize to the model's size. "training"
            feeds images as `make_vec_env` does in training.
        step_limits: Control steps of an episode, by LIBERO's name of the suite that a task comes from. Tasks of a
            suite that is not named keep their own limit.
        settle_steps: Control steps with an open gripper before the first observation.
    """

    name: str
    source: str
    fixture_seed: int = 0
    fixture_draw: Literal["trial", "first"] = "trial"
    images: Literal["published", "training"] = "published"
    step_limits: Mapping[str, int] | None = None
    settle_steps: int = 10

    def draw(self, trial: Trial) -> int:
        """Number of the fixtures' draw of a trial, counted from 1."""
        return trial.init_state_id + 1 if self.fixture_draw == "trial" and trial.init_state_id >= 0 else 1

    def start(self, trial: Trial) -> EpisodeStart:
        """Where a trial begins, with its fixtures."""
        return trial.start._replace(fixture_seed=self.fixture_seed, fixture_draw=self.draw(trial))

    def max_steps(self, suite: SuiteDescription, task_ids: Sequence[int]) -> int | list[int]:
        """Control steps that an episode may take: one number, or one for each task if they differ."""
        stated = self.step_limits or {}
        limits = [stated.get(suite.sources[task_id], suite.step_limits[task_id]) for task_id in task_ids]
        return limits[0] if len(set(limits)) == 1 else limits

    def image_options(self, size: int, center_crop: bool | None, image_size: int | None) -> dict[str, Any]:
        """Arguments of `make_vec_env` that make this protocol's images.

        Args:
            size: Side of the images that the model takes, in pixels.
            center_crop: Whether the published path ends with the centre crop; None crops for models that take 224
                pixels.
            image_size: Side of the rendered images that the caller asked for; None for the protocol's own.

        Raises:
            ValueError: If the protocol renders another size.
        """
        if self.images == "training":
            return {} if center_crop is None else {"center_crop": center_crop}
        if image_size not in (None, PUBLISHED_RENDER_SIZE):
            raise ValueError(
                f"protocol={self.name!r} renders {PUBLISHED_RENDER_SIZE} pixels, not image_size={image_size}; leave "
                "image_size out, or use protocol='training'."
            )
        crop = size == PUBLISHED_IMAGE_SIZE if center_crop is None else center_crop
        transform = published_transform(size, crop)
        return {"image_size": PUBLISHED_RENDER_SIZE, "image_transform": transform, "center_crop": crop}

    def prepare(self, suite: SuiteDescription, trials: Sequence[Trial]) -> None:
        """Have the fixtures of these trials drawn and cached, before several workers ask for them."""
        wanted: dict[int, int] = {}
        for trial in trials:
            wanted[trial.task_id] = max(wanted.get(trial.task_id, 1), self.draw(trial))
        suite.prepare_fixtures(wanted, self.fixture_seed)


# The public name. Inside this package it would clash with typing's `Protocol`.
Protocol = EvaluationProtocol

_PROTOCOLS = (
    # Both scripts call env.seed(0) where the environment is made, and env.reset() before each set_init_state().
    EvaluationProtocol("openvla", "run_libero_eval.py of OpenVLA and OpenVLA-OFT"),
    # Its seed, its draws and its step limits, which are OpenVLA's. Its images go through a bilinear resize without
    # JPEG, which `RemotePolicy` does for models that are none of ours; our own get OpenVLA's path.
    EvaluationProtocol(
        "openpi", "examples/libero/main.py of openpi; images of our own models are as OpenVLA's", fixture_seed=7
    ),
    EvaluationProtocol("fixed", "as openvla, but for one scene per task", fixture_draw="first"),
    EvaluationProtocol(
        "training",
        "as make_vec_env makes environments to train in",
        fixture_draw="first",
        images="training",
    ),
)
PROTOCOLS: dict[str, EvaluationProtocol] = {protocol.name: protocol for protocol in _PROTOCOLS}


def with_fixtures(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions of a report; an older report, which states no draws of fixtures, gets those that it was made with."""
    if "fixture_draw" in conditions:
        return dict(conditions)
    renamed = {"protocol": "fixed"} if conditions.get("protocol") == "openvla" else {}
    return {**conditions, **renamed, "fixture_seed": 0, "fixture_draw": "first"}


def describe_protocol(conditions: Mapping[str, Any]) -> str:
    """The protocol of a report in words."""
    stated = with_fixtures(conditions)
    seed = stated["fixture_seed"]
    if stated["fixture_draw"] == "trial":
        where = f"initial state k stands on draw k + 1 of the fixtures after seed {seed}"
    else:
        where = f"every initial state stands on draw 1 of the fixtures after seed {seed}"
    known = PROTOCOLS.get(stated.get("protocol", ""))
    return f"Protocol {stated.get('protocol')}{f' ({known.source})' if known else ''}: {where}."
