"""The alarm of a training: evaluated success fell from its best, beyond chance, while training did not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import fake_model

from vla_agent import EvaluationCallback, EvaluationReport
from vla_agent.commands import train
from vla_agent.evaluation import callback as callback_module
from vla_agent.evaluation.callback import EvaluatedEpisodes
from vla_agent.evaluation.falls import SIGNIFICANCE_LEVEL, Practice, find_fall
from vla_agent.evaluation.results import EpisodeResult

SAME = Practice(75, 100)


def evaluated(timestep: int, outcomes: Sequence[bool] | str) -> EvaluatedEpisodes:
    successes = [outcome == "+" for outcome in outcomes] if isinstance(outcomes, str) else outcomes
    return EvaluatedEpisodes(timestep, [EpisodeResult(0, i, bool(s), 9) for i, s in enumerate(successes)])


# Seed 1 of the main job: 97 to 70 % of 40.
FALLEN = [evaluated(t, "+" * n + "-" * (40 - n)) for t, n in enumerate((23, 23, 32, 39, 28))]


def test_a_fall_from_the_best_while_training_stays_is_told() -> None:
    practice = {t: Practice(70 + t, 100) for t in range(1, 5)}
    fall = find_fall(FALLEN, practice)
    assert fall is not None
    assert (fall.best, fall.last) == (FALLEN[3], FALLEN[4])
    assert fall.p_value == pytest.approx(2 * 0.5**11)  # 11 lost, none gained
    assert (fall.practice_then, fall.practice_now) == (Practice(73, 100), Practice(74, 100))
    told = fall.describe(Path("runs/ppo"))
    assert "Greedy success fell from 39 of 40 at timestep 3 to 28 of 40 at timestep 4" in told
    assert "73 % of 100 episodes then, 74 % of 100 episodes now" in told
    assert "the best is in 'runs/ppo/best'" in told
    assert "--learning-rate" in told
    assert "--temperature" in told
    assert told.count(". ") == 0  # one sentence
    assert "the best was not kept" in fall.describe(None)
    assert "likeliest" not in fall.describe(None, deterministic=False)


def test_a_fall_of_training_too_is_another_matter() -> None:
    assert find_fall(FALLEN, {3: Practice(80, 100), 4: Practice(50, 100)}) is None
    assert find_fall(FALLEN, {3: Practice(80, 100), 4: Practice(75, 100)}) is not None  # chance


def test_what_may_be_chance_is_no_fall() -> None:
    assert find_fall(FALLEN[:1], {}) is None
    assert find_fall(FALLEN[:4], {}) is None  # it rose
    few = [evaluated(0, "+" * 38 + "--"), evaluated(1, "+" * 33 + "-" * 7)]  # 5 lost: p = 0.06
    assert find_fall(few, {1: SAME}) is None
    enough = [few[0], evaluated(1, "+" * 32 + "-" * 8)]  # 6 lost: p = 0.03
    assert find_fall(enough, {1: SAME}) is not None
    # As the fourth evaluation it is one of six pairs.
    longer = [evaluated(-2, "-" * 40), evaluated(-1, "-" * 40), *enough]
    assert find_fall(longer, {1: SAME}) is None


def test_the_first_evaluation_is_met_by_the_first_training_episodes() -> None:
    fallen = [evaluated(0, "+" * 40), evaluated(8, "+" * 40), evaluated(16, "+" * 20 + "-" * 20)]
    assert find_fall(fallen, {0: Practice(), 8: Practice(80, 100), 16: Practice(40, 100)}) is None
    fall = find_fall(fallen, {0: Practice(), 8: Practice(80, 100), 16: Practice(80, 100)})
    assert fall is not None
    assert fall.practice_then == Practice(80, 100)
    assert "no episode then" in find_fall(fallen, {}).describe(None)  # type: ignore[union-attr]


@pytest.mark.parametrize("n_episodes", [40, 200])
def test_noise_raises_few_alarms_in_a_whole_run(n_episodes: int) -> None:
    """Policies that are equally good, each evaluated on its own luck: the hardest noise, and the best is lucky."""
    generator = np.random.default_rng(n_episodes)
    n_runs, alarms = 200, 0
    for _ in range(n_runs):
        history: list[EvaluatedEpisodes] = []
        alarm = False
        for timestep in range(9):
            history.append(evaluated(timestep, generator.random(n_episodes) < 0.7))
            alarm |= find_fall(history, dict.fromkeys(range(9), SAME)) is not None
        alarms += alarm
    assert alarms / n_runs < 2 * SIGNIFICANCE_LEVEL  # 5 % expected; 20 of 200 would be 3 standard deviations above


def test_a_true_fall_is_seen() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        rates = (0.55, 0.55, 0.8, 0.95, 0.6)
        history = [evaluated(t, generator.random(40) < rate) for t, rate in enumerate(rates)]
        found += find_fall(history, dict.fromkeys(range(5), SAME)) is not None
    assert found > 60


class Scripted:
    """In the place of an `Evaluator`: each evaluation has so many successes of 40."""

    successes: Sequence[int] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.left = list(self.successes)

    def run(self, **kwargs: Any) -> EvaluationReport:
        n = self.left.pop(0)
        conditions = {"suite": "libero_goal", "task_ids": [0], "init_state_ids": list(range(40))}
        episodes = evaluated(0, "+" * n + "-" * (40 - n)).episodes
        return EvaluationReport(conditions, {"deterministic": True}, episodes, {0: "open_the_drawer"})

    def close(self) -> None:
        pass


def trained(
    monkeypatch: pytest.MonkeyPatch, successes: Sequence[int], **kwargs: Any
) -> tuple[Any, EvaluationCallback, list[str], list[int]]:
    """A learner that was evaluated at 0, 32, 64 and so on, the callback, the warnings, and ``eval/fell``."""
    monkeypatch.setattr(Scripted, "successes", successes)
    monkeypatch.setattr(callback_module, "Evaluator", Scripted)
    model = fake_model()
    callback = EvaluationCallback("LIBERO-Goal-v0", eval_freq=32, at_start=True, at_end=True, **kwargs)
    fell: list[int] = []
    log = EvaluationCallback._log

    def noting(self: EvaluationCallback, *args: Any) -> None:
        log(self, *args)
        fell.append(self.logger.name_to_value["eval/fell"])

    monkeypatch.setattr(EvaluationCallback, "_log", noting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(32 * (len(successes) - 1), callback)
    return model, callback, [str(warning.message) for warning in caught if "fell from" in str(warning.message)], fell


def test_the_callback_warns_once_and_logs_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback, told, fell = trained(monkeypatch, (30, 39, 20, 18, 38))
    assert fell == [0, 0, 1, 1, 0]
    assert len(told) == 1
    assert "fell from 39 of 40 at timestep 32 to 20 of 40 at timestep 64" in told[0]
    assert callback.describe_fall() is None  # it came back
    assert list(callback.practice) == [0, 32, 64, 96, 128]
    assert callback.practice[0] == Practice()
    assert sum(span.n for span in callback.practice.values()) > 0
    plain = fake_model().learn(128)
    for name, value in plain.policy.state_dict().items():
        assert value.equal(model.policy.state_dict()[name]), name


def test_a_run_that_goes_on_knows_the_training_before(monkeypatch: pytest.MonkeyPatch) -> None:
    _, callback, _, _ = trained(monkeypatch, (30, 39, 20))
    again = EvaluationCallback("LIBERO-Goal-v0", eval_freq=32)
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert again.practice == callback.practice
    assert again._practising == callback._practising
    assert again.fall == callback.fall
    assert again.fall is not None
    older = {name: value for name, value in callback.state_dict().items() if not name.startswith("practi")}
    again.load_state_dict(json.loads(json.dumps(older)))
    assert again.practice == {}
    assert again.fall is not None  # nothing says that training fell


def test_the_last_lines_of_a_training_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = train.Options(eval_freq=16, eval_states="0-39", out=tmp_path)
    evaluation = train.make_evaluation(options)
    evaluation.history += [
        EvaluatedEpisodes(done.num_timesteps, [episode._replace(task_id=1) for episode in done.episodes])
        for done in FALLEN
    ]
    train.report(options, train.Curriculum("uniform", 0.5), evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("best: 39 of 40")
    assert lines[-1].startswith("Greedy success fell from 39 of 40 at timestep 3 to 28 of 40")
    assert f"'{tmp_path / 'best'}'" in lines[-1]
