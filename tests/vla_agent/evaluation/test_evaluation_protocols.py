"""The published protocol is stock LIBERO's own loop, pixel for pixel; protocols are told apart in reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import BLIND, Noise, SimProcessor, report_of

from libero_gym.stock import import_stock
from libero_gym.tasks import get_tasks, initial_states
from vla_agent import EvaluationReport, Evaluator, compare_reports, evaluate_policy
from vla_agent.evaluation import PROTOCOLS, EpisodeResult, ReportError, Trial
from vla_agent.evaluation.journal import Journal
from vla_agent.evaluation.pages import markdown
from vla_agent.openvla.image import center_crop, libero_image

N_STEPS = 2
BINS = np.array([[200, 100, 90, 128, 140, 128, 0]])


@pytest.mark.opengl
def test_trials_are_those_of_openvlas_own_loop_pixel_for_pixel() -> None:
    """Trial 2 stands on the second draw, though trial 1 was stepped in between."""
    processor = SimProcessor()
    processor.image_size = 224
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 1], "n_envs": 1, "max_episode_steps": N_STEPS}
    with Evaluator(Noise(), "LIBERO-Goal-v0", protocol="openvla", processor=processor, **options) as evaluator:
        expected = list(_stock_frames(evaluator.env.decode(BINS)[0]))
        policy = evaluator.policy = _Constant()
        transform = evaluator.env.image_transform
        assert transform is not None

        def remember(images: np.ndarray) -> np.ndarray:
            policy.frame = images[0]
            return transform(images)

        evaluator.env.image_transform = remember
        evaluator.run(progress_bar=False)
    for (frame, image), stock in zip(policy.seen, expected, strict=True):
        np.testing.assert_array_equal(frame, stock)
        np.testing.assert_array_equal(image, center_crop(libero_image(stock, rotate=False, size=224)))
    assert len(expected) == 2 * N_STEPS
    assert np.abs(expected[0].astype(int) - expected[N_STEPS]).max() > 100  # the fixtures have moved


def _stock_frames(action: np.ndarray) -> Iterator[np.ndarray]:
    """What a policy sees in `run_libero_eval.py`'s loop: two trials, each settled, with one action all along."""
    task = get_tasks("libero_goal")[0]
    import_stock()
    from libero.libero.envs import OffScreenRenderEnv

    env = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=256, camera_widths=256)
    env.seed(0)
    try:
        for trial in range(2):
            env.reset()
            obs = env.set_init_state(initial_states(task)[trial])
            for step in range(10 + N_STEPS):
                if step >= 10:
                    yield np.ascontiguousarray(obs["agentview_image"][::-1, ::-1])
                obs, *_ = env.step([0, 0, 0, 0, 0, 0, -1] if step < 10 else action.tolist())
    finally:
        env.close()


class _Constant:
    """Does the same all the time, and remembers what it saw."""

    def __init__(self) -> None:
        self.frame = np.zeros(0)  # what the environment drew last
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        self.seen.append((self.frame, obs["image"][0]))
        return BINS, None


@pytest.mark.parametrize(
    ("name", "seed", "draws"),
    [("openvla", 0, [1, 8, 1]), ("openpi", 7, [1, 8, 1]), ("fixed", 0, [1, 1, 1]), ("training", 0, [1, 1, 1])],
)
def test_a_protocol_says_which_draw_a_trial_stands_on(name: str, seed: int, draws: list[int]) -> None:
    """By the official state's number, whichever are asked for; states drawn by placement stand on the first."""
    options = [PROTOCOLS[name].start(Trial(3, state)).options for state in (0, 7, -6)]
    assert [option["fixture_draw"] for option in options] == draws
    assert {option["fixture_seed"] for option in options} == {seed}
    assert options[1] == {"task_id": 3, "init_state_id": 7, "fixture_seed": seed, "fixture_draw": draws[1]}


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_workers_begin_trials_on_their_draws_and_the_report_says_so(name: str) -> None:
    protocol = PROTOCOLS[name]
    options = {
        key: value for key, value in BLIND.items() if key not in ("progress_bar", "max_episode_steps", "protocol")
    }
    with Evaluator(Noise(), task_ids=[0], init_state_ids=[0, 4], n_envs=2, protocol=name, **options) as evaluator:
        evaluator.env.begin_episodes({i: protocol.start(trial).options for i, trial in enumerate(evaluator.trials)})
        snapshots = evaluator.env.env_method("snapshot")
    assert [(s["fixture_seed"], s["fixture_draw"]) for s in snapshots] == [
        (protocol.fixture_seed, protocol.draw(trial)) for trial in evaluator.trials
    ]
    stated = {"protocol": name, "fixture_seed": protocol.fixture_seed, "fixture_draw": protocol.fixture_draw}
    assert stated.items() <= evaluator.conditions.items()
    assert (evaluator.conditions["settle_steps"], evaluator.conditions["max_steps"]) == (10, 220)


def test_a_protocols_own_steps_hold_unless_others_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = replace(PROTOCOLS["fixed"], name="longer", step_limits={"libero_spatial": 2}, settle_steps=1)
    monkeypatch.setitem(PROTOCOLS, "longer", longer)
    options = {key: value for key, value in BLIND.items() if key not in ("max_episode_steps", "protocol")}
    report = evaluate_policy(Noise(), task_ids=[0], init_state_ids=[0], protocol="longer", **options)
    assert report.conditions["settle_steps"] == 1
    assert report.episodes == [EpisodeResult(0, 0, False, 2)]
    report = evaluate_policy(
        Noise(), task_ids=[0], init_state_ids=[0], protocol="longer", settle_steps=0, max_episode_steps=1, **options
    )
    assert (report.conditions["settle_steps"], report.conditions["max_steps"]) == (0, 1)


def test_reports_on_other_draws_are_not_mixed() -> None:
    old, new = _without_draws(report_of("++--")), report_of("++--")
    comparison = compare_reports(old, new)
    assert comparison.differences == ["protocol: 'fixed' against 'openvla'.", "fixture_draw: 'first' against 'trial'."]
    fixed = report_of("++--", protocol="fixed", fixture_draw="first")
    assert compare_reports(old, fixed).comparable  # before they were told, all stood on the first
    openpi = report_of("++--", protocol="openpi", fixture_seed=7)
    assert "fixture_seed: 0 against 7." in compare_reports(new, openpi).differences


def test_the_page_says_in_words_where_fixtures_stood() -> None:
    page = markdown(report_of("++--"))
    assert (
        "Protocol openvla (run_libero_eval.py of OpenVLA and OpenVLA-OFT): initial state k stands on draw k + 1" in page
    )
    assert "stands on draw 1 of the fixtures after seed 0." in markdown(_without_draws(report_of("++--")))
    assert "after seed 7" in markdown(report_of("++--", protocol="openpi", fixture_seed=7))


def test_a_journal_of_other_draws_is_not_continued(tmp_path: Path) -> None:
    old, new = _without_draws(report_of("++")), report_of("++")
    Journal(tmp_path, old.conditions).close()
    with pytest.raises(
        ReportError, match=r"protocol is 'fixed' and not 'openvla'.*fixture_draw is 'first' and not 'trial'"
    ):
        Journal(tmp_path, new.conditions)
    Journal(tmp_path, report_of("++", protocol="fixed", fixture_draw="first").conditions).close()


def _without_draws(report: EvaluationReport) -> EvaluationReport:
    """As reports were before they told draws of fixtures."""
    old = {key: value for key, value in report.conditions.items() if not key.startswith("fixture")}
    return replace(report, conditions=old)
