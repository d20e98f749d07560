"""How evaluations take their actions: the likeliest ones, or some drawn at a temperature; reports tell them apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import BLIND, SMALL, Noise, fake_model, report_of

from vla_agent import EvaluationCallback, EvaluationReport, Evaluator, compare_reports
from vla_agent.commands import cli
from vla_agent.evaluation import ReportError
from vla_agent.evaluation.html import report_page
from vla_agent.evaluation.pages import markdown

OPTIONS: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "progress_bar"}


@pytest.fixture(scope="module")
def small() -> Iterator[Evaluator]:
    """A learner whose rollouts have temperature 0.7, on two tasks."""
    model = fake_model(temperature=0.7)
    with Evaluator(model, task_ids=[0, 1], init_state_ids=[0, 1], n_envs=2, **OPTIONS) as evaluator:
        yield evaluator


@pytest.fixture
def acted(small: Evaluator, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The bins of every decision."""
    seen: list[np.ndarray] = []
    model = small.subject.model
    predict = model.predict

    def noting(*args: Any, **kwargs: Any) -> Any:
        actions, state = predict(*args, **kwargs)
        seen.append(actions)
        return actions, state

    monkeypatch.setattr(model, "predict", noting)
    return seen


def bins(small: Evaluator, acted: list[np.ndarray], **kwargs: Any) -> tuple[np.ndarray, EvaluationReport]:
    acted.clear()
    report = small.run(progress_bar=False, **kwargs)
    return np.concatenate(acted), report


def test_actions_are_drawn_at_the_temperature_asked_for(small: Evaluator, acted: list[np.ndarray]) -> None:
    greedy, report = bins(small, acted)
    assert (report.settings["deterministic"], report.settings["temperature"]) == (True, None)
    cold, report = bins(small, acted, deterministic=False, temperature=1e-4)
    np.testing.assert_array_equal(cold, greedy)  # all that is drawn is the likeliest
    assert (report.settings["deterministic"], report.settings["temperature"]) == (False, 1e-4)
    own, report = bins(small, acted, deterministic=False)
    assert report.settings["temperature"] == 0.7  # that of the rollouts
    same, _ = bins(small, acted, deterministic=False, temperature=0.7)
    np.testing.assert_array_equal(own, same)
    hot, _ = bins(small, acted, deterministic=False, temperature=3.0)
    assert (own != greedy).any()
    assert (hot != own).any()
    assert small.subject.model.policy.temperature == 0.7  # put back


def test_the_temperature_is_put_back_after_an_error(small: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        assert small.subject.model.policy.temperature == 2.0
        raise KeyboardInterrupt

    monkeypatch.setattr(small.subject.model, "predict", failing)
    with pytest.raises(KeyboardInterrupt):
        small.run(progress_bar=False, deterministic=False, temperature=2.0)
    assert small.subject.model.policy.temperature == 0.7


def test_a_temperature_where_nothing_is_drawn_is_refused(small: Evaluator) -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.5 is for actions that are drawn.*add deterministic=False"):
        small.run(temperature=0.5)
    for value in (0, -1.0, float("nan"), "0.5"):
        with pytest.raises(ValueError, match=r"temperature=.*expected a number above 0"):
            small.run(temperature=value, deterministic=False)  # type: ignore[arg-type]
    blind = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    with Evaluator(Noise(), task_ids=[0], init_state_ids=[0], **blind) as evaluator:
        with pytest.raises(ValueError, match=r"temperature=0\.5 needs a policy that draws action tokens; this Noise"):
            evaluator.run(temperature=0.5, deterministic=False)
        report = evaluator.run(deterministic=False, progress_bar=False)  # as it likes
    assert report.settings["temperature"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0.5"], "--temperature 0.5 is for actions that are drawn, and without --sample"),
        (["--sample", "--temperature", "0"], "--temperature=0.0 is out of range; expected a number above 0"),
    ],
)
def test_the_command_refuses_it_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *arguments, "--out", str(tmp_path)])
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def with_decoding(**settings: Any) -> EvaluationReport:
    return replace(report_of("++--"), settings={"seed": 0, **settings})


def test_reports_at_other_temperatures_are_told_apart() -> None:
    drawn = with_decoding(deterministic=False, temperature=0.5)
    hot = with_decoding(deterministic=False, temperature=1.0)
    greedy = with_decoding(deterministic=True, temperature=None)
    assert compare_reports(drawn, replace(drawn)).comparable
    comparison = compare_reports(drawn, hot)
    assert comparison.differences == ["actions: 'drawn at temperature 0.5' against 'drawn at temperature 1'."]
    assert "It need not be the model's" in str(comparison)
    assert not compare_reports(greedy, drawn).comparable
    assert compare_reports(greedy, with_decoding(deterministic=True)).comparable  # a report of before
    assert not compare_reports(drawn, with_decoding(deterministic=False)).comparable


def test_reports_of_different_simulations_are_not_compared() -> None:
    exact, newer = with_decoding(mujoco="exact"), with_decoding(mujoco="equivalent (4.0.0)")
    with pytest.raises(ReportError, match=r"one exact and one equivalent \(4\.0\.0\), and are not mixed"):
        compare_reports(exact, newer)
    with pytest.raises(ReportError, match=r"one equivalent \(4\.0\.0\) and one equivalent \(3\.8\.1\)"):
        compare_reports(newer, with_decoding(mujoco="equivalent (3.8.1)"))
    assert compare_reports(newer, replace(newer)).comparable
    before = with_decoding()  # earlier reports state a version of MuJoCo, or nothing, which was 3.3.2
    assert compare_reports(exact, before).comparable
    other = replace(before, manifest=before.manifest | {"versions": {"mujoco": "3.8.1"}})
    with pytest.raises(ReportError, match=r"one exact and one equivalent \(3\.8\.1\)"):
        compare_reports(before, other)


def test_simulations_are_compared_on_purpose_alone() -> None:
    exact = with_decoding(mujoco="exact")
    batched = replace(report_of("+++-"), settings={"seed": 0, "mujoco": "batched (MuJoCo Warp 4.0.0)"})
    with pytest.raises(ReportError, match=r"same version of MuJoCo and back end, or add --across-simulations"):
        compare_reports(exact, batched)
    comparison = compare_reports(exact, batched, across_simulations=True)
    assert comparison.comparable
    assert (comparison.only_first, comparison.only_second, comparison.p_value) == (0, 1, 1.0)
    assert "Simulations: exact against batched (MuJoCo Warp 4.0.0)." in str(comparison)
    named = batched.manifest | {"model": {"name": "another"}}
    other = compare_reports(exact, replace(batched, manifest=named), across_simulations=True)
    assert other.differences == ["model: 'tiny' against 'another'."]
    assert "It need not be the simulation's" in str(other)
    alike = compare_reports(exact, replace(exact), across_simulations=True)  # which is what models are compared in
    assert alike.comparable
    assert not alike.across_simulations


def test_the_pages_say_that_a_simulation_is_not_exact(tmp_path: Path) -> None:
    report = with_decoding(mujoco="equivalent (4.0.0)")
    for page in (markdown(report), report_page(report, tmp_path)):
        assert "simulation is equivalent (4.0.0), not exact" in page
    assert "| simulation | equivalent (4.0.0) |" in markdown(report)
    assert "not exact" not in markdown(with_decoding(mujoco="exact"))


def test_the_pages_say_how_actions_were_taken(tmp_path: Path) -> None:
    for report, words in (
        (with_decoding(deterministic=False, temperature=0.5), "Actions are drawn at temperature 0.5."),
        (with_decoding(deterministic=True, temperature=None), "Actions are the likeliest (greedy)."),
    ):
        assert words in markdown(report)
        assert words in report_page(report, tmp_path)


def test_another_temperature_does_not_go_on_in_the_same_folder(small: Evaluator, tmp_path: Path) -> None:
    small.run(progress_bar=False, out=tmp_path, deterministic=False, temperature=0.5)
    with pytest.raises(ReportError, match=r"of another evaluation: temperature is 0\.5 and not 0\.6"):
        small.run(progress_bar=False, out=tmp_path, deterministic=False, temperature=0.6)
    loaded = EvaluationReport.load(tmp_path)
    assert loaded.settings["temperature"] == 0.5


def test_a_greedy_journal_of_before_goes_on(small: Evaluator, tmp_path: Path) -> None:
    small.run(progress_bar=False, out=tmp_path)
    journal = tmp_path / "episodes.jsonl"
    header, *episodes = journal.read_text().splitlines()
    older = {name: value for name, value in json.loads(header).items() if name not in ("temperature", "mujoco")}
    journal.write_text("\n".join([json.dumps(older), *episodes[:2]]) + "\n")
    assert len(small.run(progress_bar=False, out=tmp_path).episodes) == 4


def test_evaluations_inside_a_training_may_draw_at_their_own_temperature() -> None:
    plain = fake_model(temperature=0.7).learn(96)
    model = fake_model(temperature=0.7)
    callback = EvaluationCallback(
        "LIBERO-Spatial-v0", eval_freq=30, deterministic=False, temperature=1.5, task_ids=[2], init_state_ids=[5],
        **OPTIONS,
    )  # fmt: skip
    model.learn(96, callback)
    assert callback.reports[32].settings["temperature"] == 1.5
    assert model.policy.temperature == 0.7
    for name, value in plain.policy.state_dict().items():
        assert value.equal(model.policy.state_dict()[name]), name
