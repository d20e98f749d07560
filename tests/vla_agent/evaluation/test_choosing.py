"""Evaluations of the best of n candidates: on the real simulator, and in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch as th
from evaluations import SMALL, Noise, fake_model, report_of

from vla_agent import EvaluationReport, Evaluator, evaluate_policy
from vla_agent.commands import cli
from vla_agent.evaluation import ReportError
from vla_agent.evaluation.html import report_page
from vla_agent.evaluation.pages import markdown
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.test_time import BestOfN, Question, ScorerError

TWO = {"task_ids": [0], "init_state_ids": [0, 1], "n_envs": 2, **SMALL}


class ByRow:
    """Likes the second candidate everywhere, and its number in the batch."""

    name, is_oracle = "second", False

    def score(self, question: Question) -> th.Tensor:
        scores = th.zeros(question.candidates.bins.shape[:2])
        scores[:, 1] = 1 + th.arange(len(scores)) / 4
        return scores


def test_a_report_states_what_chose_and_how_its_scores_went_with_success(tmp_path: Path) -> None:
    report = evaluate_policy(fake_model(), best_of_n=3, scorer=lambda policy, env: ByRow(), out=tmp_path, **TWO)
    assert [episode.score for episode in report.episodes] == [1.0, 1.25]
    stated = {name: report.settings[name] for name in ("best_of_n", "scorer", "oracle", "deterministic", "temperature")}
    expected = {"best_of_n": 3, "scorer": "second", "oracle": False, "deterministic": True, "temperature": 1.0}
    assert stated == expected
    loaded = EvaluationReport.load(tmp_path)
    assert loaded.episodes == report.episodes
    assert loaded.timing["ms_per_decision"] > 0
    assert "the best of 3 candidates (the likeliest and others drawn at temperature 1.0) by second" in markdown(report)
    again = evaluate_policy(fake_model(), best_of_n=3, scorer=lambda policy, env: ByRow(), out=tmp_path, **TWO)
    assert again.episodes == report.episodes, "the journal keeps scores"
    assert again.timing == loaded.timing, "nothing was played, so nothing took other time"
    with pytest.raises(ReportError, match=r"best_of_n is 3 and not 4"):
        evaluate_policy(fake_model(), best_of_n=4, scorer=lambda policy, env: ByRow(), out=tmp_path, **TWO)


def test_a_scorer_of_other_weights_is_another_evaluation(tmp_path: Path) -> None:
    class Weighed(ByRow):
        def __init__(self, weights: str) -> None:
            self.weights_hash = weights

    report = evaluate_policy(fake_model(), best_of_n=3, scorer=lambda *_: Weighed("a"), out=tmp_path, **TWO)
    assert report.settings["scorer_weights"] == "a"
    with pytest.raises(ReportError, match="scorer_weights is 'a' and not 'b'"):
        evaluate_policy(fake_model(), best_of_n=3, scorer=lambda *_: Weighed("b"), out=tmp_path, **TWO)
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    older = {name: value for name, value in json.loads(lines[0]).items() if name != "scorer_weights"}
    (tmp_path / "episodes.jsonl").write_text("\n".join([json.dumps(older), *lines[1:]]) + "\n")
    evaluate_policy(fake_model(), best_of_n=3, scorer=lambda *_: Weighed("b"), out=tmp_path, **TWO)  # it did not tell


def test_one_candidate_changes_neither_episodes_nor_files(tmp_path: Path) -> None:
    plain = evaluate_policy(fake_model(), **TWO)
    one = evaluate_policy(fake_model(), best_of_n=1, out=tmp_path, **TWO)
    assert one.episodes == plain.episodes
    assert one.settings == plain.settings
    assert "score" not in json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[1])


def test_the_same_seed_gives_the_same_episodes_and_another_temperature_others() -> None:
    options = {name: value for name, value in TWO.items() if name != "progress_bar"}
    with Evaluator(fake_model(), best_of_n=4, scorer="agreement", **options) as evaluator:

        def scores(seed: int, temperature: float) -> list[float | None]:
            report = evaluator.run(seed=seed, temperature=temperature, progress_bar=False)
            return [episode.score for episode in report.episodes]

        assert scores(0, 1.0) == scores(0, 1.0)
        assert scores(0, 1.0) != scores(1, 1.0)
        assert scores(0, 1.0) != scores(0, 0.5)


def test_an_oracle_is_named_in_everything_that_is_written(tmp_path: Path) -> None:
    report = evaluate_policy(fake_model(), best_of_n=2, scorer="success-oracle:1", out=tmp_path, **TWO)
    assert report.settings["oracle"] is True
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["settings"]["oracle"] is True
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "VLAPPO with an oracle on libero_spatial" in text
        assert "an oracle that looks ahead in the evaluation&#39;s own simulator" in text.replace("'", "&#39;")


def test_an_object_that_chooses_is_evaluated_as_any_policy() -> None:
    report = evaluate_policy(BestOfN(fake_model(), 3, ByRow()), **TWO)
    assert report.settings["scorer"] == "second"
    assert [episode.score for episode in report.episodes] == [1.0, 1.25]


def test_auc_of_a_report_is_over_episodes_with_a_score(tmp_path: Path) -> None:
    report = report_of("+-+-")
    assert report.scorer_auc is None
    scores = (3.0, 1.0, 1.5, 2.0)
    scored = replace(
        report, episodes=[episode._replace(score=s) for episode, s in zip(report.episodes, scores, strict=True)]
    )
    assert scored.scorer_auc == 0.75
    scored.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["scorer_auc"] == 0.75
    assert "0.750" in markdown(scored)
    assert "0.750" in report_page(scored, tmp_path)
    with pytest.raises(ReportError, match="damaged: score=nan"):
        EpisodeResult.from_json(scored.episodes[0].to_json() | {"score": float("nan")}, "It")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"best_of_n": 0}, ValueError, "best_of_n=0 is out of range"),
        ({"best_of_n": 4, "scorer": "magic"}, ScorerError, "scorer='magic'; expected agreement, critic:FOLDER"),
        ({"best_of_n": 4, "scorer": "critic:nowhere"}, ScorerError, "There is no critic at 'nowhere'"),
    ],
)
def test_wrong_choices_are_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate_policy(fake_model(), **(TWO | given))


def test_a_policy_without_candidates_is_named() -> None:
    model = Noise()
    with pytest.raises(ScorerError, match="A Noise draws no action tokens"):
        evaluate_policy(model, best_of_n=2, processor=fake_model().policy.backbone.processor, **TWO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorer", "success-oracle"], "--scorer success-oracle chooses among candidates; add --best-of-n 8"),
        (["--best-of-n", "0"], "--best-of-n=0 is out of range"),
        (["--best-of-n", "2", "--scorer", "magic"], "scorer='magic'; expected agreement"),
    ],
)
def test_the_command_names_wrong_choices(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *arguments])
    assert message in capsys.readouterr().err
