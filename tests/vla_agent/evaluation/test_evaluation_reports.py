"""Reports: rows and intervals by hand, files that come back, what two reports say of each other."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import report_of
from PIL import Image, ImageColor

from vla_agent import EvaluationReport, compare_reports
from vla_agent.common.intervals import newcombe_interval, wilson_interval
from vla_agent.evaluation import ReportError, SuccessRow
from vla_agent.evaluation.html_comparison import comparison_page
from vla_agent.evaluation.pages import _TASK_COLOR, _TRACK_COLOR, draw_chart, markdown
from vla_agent.evaluation.provenance import (
    describe_command,
    describe_model,
    overlap,
    provenance,
    read_training_states,
    write_training_states,
)
from vla_agent.evaluation.results import describe_ids


def test_rows_by_hand() -> None:
    report = report_of("++-+" + "----")
    assert report.success_rate == 3 / 8
    assert report.tasks[0] == SuccessRow(4, 3, *wilson_interval(3, 4), (3 * 100 + 300) / 4, 100)
    assert report.tasks[1].mean_success_steps is None
    assert list(report.tasks) == [0, 1]


def test_a_report_comes_back_from_its_files(tmp_path: Path) -> None:
    report = report_of("++-+----")
    report.save(tmp_path)
    for path in (tmp_path, tmp_path / "report.json"):
        assert EvaluationReport.load(path) == report
    files = ["report.html", "report.json", "report.md", "success.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema"] == 1
    assert content["episodes"][2] == {"task_id": 0, "init_state_id": 2, "success": False, "steps": 300}
    assert content["tasks"]["0"]["wilson_95"] == [0.300642, 0.954413]


def test_names_and_facts_do_not_end_a_cell_of_the_page() -> None:
    report = report_of("+-" + "--")
    report.task_names[0] = "open_the|drawer\nslowly"
    report.task_suites[1] = "mine|too"
    report.manifest["command"] = "python a.py |\n  tee log"
    page = markdown(report)
    assert r"| 0 | open the\|drawer slowly | 1/2 |" in page
    assert r"| mine\|too | 0.0 % | 0/2 |" in page
    assert r"| command | python a.py \|   tee log |" in page


def test_the_chart_shows_successes_in_colour_beside_wide_intervals(tmp_path: Path) -> None:
    draw_chart(report_of("+-" + "--"), tmp_path / "success.png")
    pixels = np.asarray(Image.open(tmp_path / "success.png").convert("RGB"))
    assert pixels.shape[1] == 1000
    bar, track = ((pixels == ImageColor.getrgb(color)).all(axis=-1) for color in (_TASK_COLOR, _TRACK_COLOR))
    row = bar.sum(axis=1).argmax()  # above the interval's line
    assert track[row].sum() + bar[row].sum() > 800  # the names take no width
    assert bar[row].sum() / (track[row].sum() + bar[row].sum()) == pytest.approx(0.5, abs=0.02)  # track ends blurred
    empty = track.sum(axis=1).argmax()  # of the task without a success
    assert not bar[empty, :850].any()


def test_what_fails_while_it_is_written_leaves_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_of("++").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match=r"No space left on device; '.*report\.json' was not written"):
        report_of("--").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_that_are_no_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="There is no report at"):
        EvaluationReport.load(tmp_path)
    report_of("++").save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(content | {"schema": 7}))
    with pytest.raises(ReportError, match="has schema 7; this version reads schema 1"):
        EvaluationReport.load(tmp_path)
    del content["episodes"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ReportError, match="is damaged: it has no 'episodes'"):
        EvaluationReport.load(tmp_path)


def test_the_page_says_what_the_model_was_trained_on() -> None:
    report = report_of("+-")
    assert "trained on is unknown" in markdown(report)
    trained = replace(report, manifest=report.manifest | {"training_states": {"libero_goal": [0, 1, 2, 9]}})
    assert "trained on initial states 0-2, 9 of this suite; 1 of the 1 evaluated are among them" in markdown(trained)
    assert "| 0 | open the drawer | 1/1 |" in markdown(report)


def test_a_report_compared_with_itself_differs_by_nothing() -> None:
    comparison = compare_reports(report_of("++-+----"), report_of("++-+----"))
    assert comparison.comparable
    assert comparison.paired
    assert comparison.difference == 0
    assert comparison.p_value == 1
    assert not comparison.significant


def test_paired_episodes_are_compared_one_by_one() -> None:
    first, second = report_of("+" * 4 + "-" * 16), report_of("-" + "+" * 13 + "-" * 6)
    comparison = compare_reports(first, second)
    assert (comparison.only_first, comparison.only_second) == (1, 10)
    assert comparison.p_value == pytest.approx(2 * (1 + 11) / 2**11)
    assert comparison.significant
    assert comparison.difference == pytest.approx(9 / 20)
    assert "p = 0.0117" in str(comparison)


def test_other_conditions_are_named() -> None:
    first, second = (
        report_of("++--"),
        report_of("++--", renderer="fast", protocol="training", fixture_draw="first", max_steps=64),
    )
    comparison = compare_reports(first, second)
    assert not comparison.comparable
    assert comparison.differences == [
        "protocol: 'openvla' against 'training'.",
        "fixture_draw: 'trial' against 'first'.",
        "renderer: 'exact' against 'fast'.",
        "max_steps: 300 against 64.",
    ]
    assert "Comparable: no." in str(comparison)
    assert "the conditions differ" in str(comparison)
    sampled = replace(first, settings={"seed": 3, "deterministic": False})
    comparison = compare_reports(first, sampled)
    stated = "drawn at a temperature that the report does not state"
    assert comparison.differences == [f"actions: 'the likeliest (greedy)' against '{stated}'."]
    assert comparison.choices == ["seed: 0 against 3."]
    partial = compare_reports(first, replace(first, episodes=first.episodes[:3], complete=False))
    assert partial.differences == ["The second report is of an interrupted evaluation (3 episodes)."]
    assert (partial.first.n, partial.first.successes) == (3, 2)  # what both ran


def test_tasks_of_one_name_and_number_may_be_others() -> None:
    """As in two folders of BDDL files that are called the same."""
    first = report_of("++--", task_files="a")
    renamed = replace(first, task_names={0: "open_the_drawer", 1: "wash_the_plate"})
    comparison = compare_reports(first, renamed)
    told = "task 1: 'push_the_plate' against 'wash_the_plate', so their episodes are no pairs and left out."
    assert comparison.differences == [told]
    assert (comparison.paired, comparison.first.n, comparison.second.n) == (True, 2, 2)
    changed = compare_reports(first, report_of("++--", task_files="b"))
    assert changed.differences == ["tasks: their BDDL files or initial states differ."]
    assert not changed.paired
    older = compare_reports(first, report_of("++--"))
    assert older.comparable, "which tells names alone"
    assert older.paired


def test_tasks_of_other_names_are_no_pairs_whichever_tasks_a_suite_has() -> None:
    first = replace(report_of("+" * 40, suite="mine"), task_names={0: "open_drawer", 1: "x"})
    other = report_of("-" * 40, suite="mine", task_ids=[0, 1, 2])
    second, some = (replace(other, task_names={0: "close_door", 1: name, 2: "z"}) for name in "yx")
    comparison = compare_reports(first, second)
    assert (comparison.paired, comparison.p_value) == (False, None)
    assert comparison.differences == [
        "task_ids: 0-1 against 0-2.",
        "task 0: 'open_drawer' against 'close_door'; tasks 0-1 are others, so no episodes are paired.",
    ]
    page = comparison_page(first, second, Path("out"))
    assert page.count("not run") == 4, "each of four tasks has one side"
    comparison = compare_reports(first, some)
    assert (comparison.paired, comparison.first.n, comparison.only_first) == (True, 20, 20)
    page = comparison_page(first, some, Path("out"))
    assert "On the 20 episodes that both ran, 0 were gained and 20 lost" in page
    assert "open drawer" not in page
    alike = compare_reports(first, replace(other, task_names={0: "open_drawer", 1: "x", 2: "z"}))
    assert (alike.first.n, alike.differences) == (40, ["task_ids: 0-1 against 0-2."])


def test_limits_of_tasks_are_told_in_their_order() -> None:
    first, second = report_of("++--", max_steps=[300, 220]), report_of("++--", max_steps=[220, 300])
    assert compare_reports(first, second).differences == ["max_steps: 300, 220 against 220, 300."]
    assert "| max_steps | 300, 220 |" in markdown(first)
    assert "| task_ids | 0-1 |" in markdown(first)


def test_older_reports_state_no_rendered_size_and_have_that_of_their_protocol() -> None:
    def of(protocol: str = "openvla", **settings: Any) -> EvaluationReport:
        return replace(report_of("++--", protocol=protocol), settings={"image_size": 224, **settings})

    stated = {"rendered_size": 256, "image_transform": "published"}
    assert compare_reports(of(), of(**stated)).choices == []
    told = compare_reports(of(), of(**stated | {"rendered_size": 128})).choices
    assert told == ["rendered_size: 256 against 128."]
    trained = of("training", image_size=112), of("training", image_size=112, rendered_size=112, image_transform="none")
    assert compare_reports(*trained).choices == []


def test_a_joined_suites_older_report_is_drawn_beside_a_newer_one() -> None:
    newer = replace(report_of("++--"), task_suites={0: "libero_goal", 1: "libero_spatial"})
    older = replace(report_of("+---"), task_suites={})
    for pair in ((older, newer), (newer, older)):
        page = comparison_page(*pair, Path("out"))
        assert "libero_spatial" in page


def test_other_states_are_compared_as_independent_samples() -> None:
    comparison = compare_reports(report_of("-" * 20), report_of("+" * 12 + "-" * 8, first_state=10))
    assert comparison.differences == ["init_state_ids: 0-9 against 10-19."]
    assert not comparison.paired
    assert comparison.p_value is None
    assert comparison.interval == newcombe_interval((0, 20), (12, 20))
    assert comparison.significant
    assert "independent samples" in str(comparison)
    other_suite = compare_reports(report_of("++"), report_of("++", suite="libero_10"))
    assert not other_suite.paired


def test_ids_are_written_as_ranges() -> None:
    assert describe_ids([7, 0, 1, 2, 3]) == "0-3, 7"
    assert describe_ids([]) == "none"
    assert describe_ids([3, -1001, -1002, 2]) == "2-3, placement seeds 1000-1001"
    assert describe_ids([-1]) == "placement seeds 0"


def test_the_manifest_tells_weights_files_and_versions_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    described = describe_model(object(), "some/model", tmp_path)
    assert described["sha256"] == {"config.json": hashlib.sha256(b"{}").hexdigest()}
    assert provenance()["versions"]["mujoco"] == version("mujoco")


def test_a_class_of_ones_own_is_told_from_what_it_was_before_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    told = []
    for text in ("class Mine: ...\n", "class Mine:\n    gain = 2\n"):
        (tmp_path / "mine_of_a_test.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("mine_of_a_test", None)
        told.append(describe_model(importlib.import_module("mine_of_a_test").Mine(), None, None)["source"])
    assert told[0] != told[1]
    assert "source" not in describe_model(report_of("+-"), None, None), "the project tells its commit"


def test_the_command_is_as_somebody_else_would_type_it() -> None:
    script = ["examples/evaluate.py", "--out", "a folder"]
    assert describe_command(script) == "python examples/evaluate.py --out 'a folder'"
    assert describe_command(["/somewhere/bin/libero-vla", "evaluate"]) == "libero-vla evaluate"
    assert describe_command(["libero-vla evaluate", "--out", "a folder"]) == "libero-vla evaluate --out 'a folder'"
    assert provenance()["command"]


def test_training_states_are_read_and_damage_is_named(tmp_path: Path) -> None:
    assert read_training_states(None) is None
    assert read_training_states(tmp_path) is None
    path = tmp_path / "training.json"
    path.write_text('{"training": {"libero_spatial": [3, 1]}}')
    assert read_training_states(tmp_path) == {"libero_spatial": [1, 3]}
    trained = {"libero_spatial": range(3, 5), "libero_10": [7]}
    write_training_states(tmp_path, trained, read_training_states(tmp_path))
    assert read_training_states(tmp_path) == {"libero_spatial": [1, 3, 4], "libero_10": [7]}
    evaluated = {"libero_spatial": range(3), "libero_goal": range(3)}
    assert overlap({"libero_spatial": [1, 3]}, evaluated) == {"libero_spatial": [1]}
    assert overlap(None, evaluated) is None
    path.write_text('{"trained": {}}')
    with pytest.raises(ValueError, match=r"training\.json' is damaged; expected"):
        read_training_states(tmp_path)
