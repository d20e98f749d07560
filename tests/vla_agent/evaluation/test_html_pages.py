"""The web pages: well-formed, the report's own numbers, nothing fetched, nothing run, the same bytes again."""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluations import report_of
from learners import make_model

from vla_agent import EvaluationReport, SuccessCallback, compare_reports
from vla_agent.commands import cli
from vla_agent.common.intervals import wilson_interval
from vla_agent.evaluation import html
from vla_agent.evaluation.callback import EvaluatedEpisodes, EvaluationCallback
from vla_agent.evaluation.charts import plot, summarize, whole_ticks
from vla_agent.evaluation.clips import clip_path, read_clips
from vla_agent.evaluation.html import report_page
from vla_agent.evaluation.html_comparison import changes_by_suite, comparison_page
from vla_agent.evaluation.journal import Journal
from vla_agent.evaluation.learning import RunCurve, read_curve
from vla_agent.evaluation.results import EpisodeResult, describe_row

VOID = {"meta", "col"}
CURVE = {
    "evaluations": [[0, 0.525, 0.375, 0.671], [1024, 0.75, 0.598, 0.858], [2048, 0.95, 0.835, 0.986]],
    "training": [[230, 0.65625, 0.48, 0.8], [900, 0.8125, 0.65, 0.91]],
    "evaluated_at": 2048,
}


class Page(HTMLParser):
    """A page read: its tags, which must balance, its attributes, its text, and its rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        assert text.startswith("<!doctype html>\n")
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [value for _, name, value in self.attributes if name == "id"]
        assert len(set(ids)) == len(ids)
        assert {value for _, name, value in self.attributes if name == "aria-labelledby"} <= set(ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # HTML itself knows no <div/>
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All that is read, with single spaces."""
        return " ".join("".join(self.texts).split())

    def row(self, start: str) -> list[str]:
        """The cells of the only row whose first cell begins with a text."""
        found = [row for row in ([" ".join(cell.split()) for cell in row] for row in self.rows) if row]
        (row,) = [row for row in found if row[0].startswith(start)]
        return row

    def values(self, attribute: str) -> list[str]:
        """Every value of an attribute."""
        return [value for _, name, value in self.attributes if name == attribute]


def film(folder: Path, report: EvaluationReport, sizes: dict[tuple[int, int], int]) -> None:
    """Files of so many bytes in the place of films, by task and state."""
    for episode in report.episodes:
        if episode[:2] in sizes:
            path = clip_path(folder, episode)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes([episode.init_state_id]) * sizes[episode[:2]])


def with_curve(report: EvaluationReport) -> EvaluationReport:
    return replace(report, manifest=report.manifest | {"learning_curve": CURVE})


def pages(folder: Path, report: EvaluationReport) -> list[str]:
    """A report's page, and that of its comparison with itself."""
    return [report_page(report, folder), comparison_page(report, report, folder)]


# ------------------------------------------------------------------------------------------------ report


def test_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    report = report_of("++-+" + "----")
    report.manifest.update(machine={"architecture": "x86_64", "cpu_cores": 2, "gpus": ["H200"]}, command="python a|b")
    report.save(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert f"Success {describe_row(report.total)} (Wilson)." in page.text
    assert page.row("0 open the drawer failed from state 2")[1:] == ["3/4 = 75.0 % 30.1 to 95.4 %", "150.0", "100.0"]
    assert page.row("1 push the plate failed from states 0-3")[1:] == ["0/4 = 0.0 % 0.0 to 49.0 %", "300.0", ""]
    assert page.row("all tasks")[1] == "3/8 = 37.5 % 13.7 to 69.4 %"
    low, high = wilson_interval(3, 4)
    assert "width:75.0%" in page.values("style")
    assert f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%" in page.values("style")
    lines = (tmp_path / "report.md").read_text().split("| | |\n| --- | --- |\n")[1].splitlines()
    stated = [line.strip("| ").replace("`", "").split(" | ") for line in lines]
    assert ["machine", "x86_64, 2 CPU cores, H200"] in stated
    assert ["command", r"python a\|b"] in stated
    for name, *value in stated:
        assert page.row(name)[1:] == [text.replace("\\|", "|") for text in value]


def test_what_a_reader_must_know_stands_out(tmp_path: Path) -> None:
    report = report_of("+-")
    assert "trained on is unknown" in Page(report_page(report, tmp_path)).text
    trained = replace(report, manifest=report.manifest | {"training_states": {"libero_goal": [0]}}, complete=False)
    page = Page(report_page(trained, tmp_path))
    assert "trained on initial states 0 of this suite; 1 of the 1 evaluated are among them." in page.text
    assert "interrupted after 2 episodes" in page.text
    assert page.values("class").count("notice") == 2


@pytest.mark.parametrize(
    "evil", ["<script>window.pwned=1</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}</td>"]
)
def test_names_are_text_and_never_markup(tmp_path: Path, evil: str) -> None:
    report = with_curve(report_of("+-+-" + "----", suite=evil))
    report.task_names.update({0: evil, 1: evil})
    report.settings.update({evil: evil, "cameras": [evil]})
    report.manifest.update(command=evil, commit=evil, versions={evil: evil}, machine={"gpus": [evil]})
    report.manifest["model"] = {"name": evil, "sha256": {evil: evil}}
    film(tmp_path, report, {(0, 1): 3})
    plain = [Page(text) for text in pages(tmp_path, with_curve(report_of("+-+-" + "----")))]
    for text, ordinary in zip(pages(tmp_path, report), plain, strict=True):
        page = Page(text)
        assert set(page.tags) <= set(ordinary.tags) | {"li"}
        assert {"script", "img"} & set(page.tags) == set()
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert evil.replace("_", " ") in page.text
        assert any(evil in value for value in page.values("aria-label"))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    report = with_curve(report_of("+-+-" + "----"))
    film(tmp_path, report, {(0, 1): 3})
    for text in pages(tmp_path, report):
        page = Page(text)
        assert {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags) == set()
        assert page.values("src")
        assert all(value.startswith("data:video/mp4;base64,") for value in page.values("src"))
        names = {"href", "srcset", "poster", "data", "action", "background", "xlink:href"}
        assert not [name for _, name, _ in page.attributes if name in names]
        assert not re.search(r"https?:|url\(|@import", text)
        assert any("default-src 'none'" in value for value in page.values("content"))


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = with_curve(report_of("+-+-" + "----"))
    film(tmp_path, report, {(1, 0): 3, (0, 1): 5})
    report.save(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    again = EvaluationReport.load(tmp_path)
    again.save(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert comparison_page(report, again, tmp_path) == comparison_page(again, report, tmp_path)


def test_tables_say_what_their_cells_are(tmp_path: Path) -> None:
    for text in pages(tmp_path, with_curve(report_of("+-+-" + "----"))):
        page = Page(text)
        headers = [name for tag, name, _ in page.attributes if tag == "th"]
        assert headers.count("scope") == page.tags.count("th")
        labelled = [name for tag, name, _ in page.attributes if tag in ("svg", "video")]
        assert labelled.count("aria-label") == page.tags.count("svg") + page.tags.count("video")


def test_several_suites_have_a_row_each(tmp_path: Path) -> None:
    one = report_of("++-+" + "----")
    assert "libero_goal" not in [row[0] for row in Page(report_page(one, tmp_path)).rows if row]
    suites = {0: "libero_spatial", 1: "libero_goal"}
    before, after = replace(one, task_suites=suites), replace(report_of("+-++" + "--+-"), task_suites=suites)
    page = Page(report_page(before, tmp_path))
    assert page.row("libero_spatial")[1].startswith("3/4")
    assert page.row("libero_goal")[1].startswith("0/4")
    assert page.row("all tasks")[1].startswith("3/8")
    changes = changes_by_suite(before, after, before.episodes, after.episodes, paired=True)
    assert [(change.name, len(change.tasks)) for change in changes] == [("libero_spatial", 1), ("libero_goal", 1)]
    other = replace(after, task_suites=dict.fromkeys(suites, "libero_10"))
    changes = changes_by_suite(before, other, before.episodes, other.episodes, paired=False)
    assert [(change.name, len(change.tasks)) for change in changes] == [
        *[(suites[i], 1) for i in (0, 1)],
        ("libero_10", 2),
    ]


# ------------------------------------------------------------------------------------------------ films


def test_films_are_in_the_page_until_it_is_full(tmp_path: Path) -> None:
    report = report_of("--+" + "---")
    film(tmp_path, report, {(0, 0): 30, (0, 1): 30, (0, 2): 30, (1, 0): 60, (1, 2): 3})
    clips = read_clips(tmp_path, report.episodes)
    assert [clip.episode[:2] for clip in clips.shown] == [(0, 0), (0, 1), (1, 0), (1, 2)]  # no success
    assert clips.left_out == []
    kind, content = clips.shown[2].uri.split(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(content) == bytes(60)
    # Four bytes for three: 40, 40, 80 and 4. Each task's first film comes before the second ones.
    for room, shown in ((163, [(0, 0), (0, 1), (1, 0)]), (124, [(0, 0), (1, 0), (1, 2)]), (39, [(1, 2)])):
        found = read_clips(tmp_path, report.episodes, room)
        assert [clip.episode[:2] for clip in found.shown] == shown, room
        assert sum(len(clip.uri.split(",")[1]) for clip in found.shown) <= room
        assert len(found.shown) + len(found.left_out) == 4
    assert read_clips(tmp_path, report.episodes, 124).left_out == ["failures/task00_init01.mp4"]


def test_films_of_another_evaluation_are_in_no_page(tmp_path: Path) -> None:
    report = report_of("--" + "+-")
    film(tmp_path, report, {(0, 0): 3, (0, 1): 3, (1, 0): 3, (1, 1): 3})
    with Journal(tmp_path, report.conditions) as journal:
        for episode in report.episodes:
            journal.write(episode, filmed=episode.init_state_id == 1)
    for text in pages(tmp_path, report):
        assert Page(text).tags.count("video") == 2
    assert [clip.episode[:2] for clip in read_clips(tmp_path, report.episodes).shown] == [(0, 1), (1, 1)]
    assert len(list((tmp_path / "failures").iterdir())) == 4
    path = tmp_path / "episodes.jsonl"
    path.write_text(re.sub(', "filmed": [a-z]+', "", path.read_text()))  # older ones do not tell
    assert len(read_clips(tmp_path, report.episodes).shown) == 3


def test_the_page_names_films_that_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of("-+" + "-+", first_state=4)
    film(tmp_path, report, {(0, 4): 9, (1, 4): 9})
    page = Page(report_page(report, tmp_path))
    assert "beyond" not in page.text
    assert "0 open the drawer initial state 4, failed after 15.0 s" in page.text
    limited = html.read_clips
    monkeypatch.setattr(html, "read_clips", lambda folder, episodes: limited(folder, episodes, 12))
    page = Page(report_page(report, tmp_path))
    assert page.tags.count("video") == 1
    assert "Films beyond 20 MB in all are not in this page, but beside it: failures/task01_init04.mp4." in page.text
    assert "Failures" not in Page(report_page(report, tmp_path / "elsewhere")).text


# ------------------------------------------------------------------------------------------------ learning curves


def test_a_saved_run_brings_its_learning_curve(tmp_path: Path) -> None:
    model = make_model()
    success = SuccessCallback()
    evaluation = EvaluationCallback("LIBERO-Spatial-v0")
    evaluation.history = [
        EvaluatedEpisodes(0, [EpisodeResult(0, 0, False, 9)] * 4),
        EvaluatedEpisodes(640, [EpisodeResult(0, i, i < 3, 9) for i in range(4)]),
    ]
    model.learn(640, success)
    model.stateful_callbacks = {"SuccessCallback": success, "EvaluationCallback": evaluation}
    model.run = {"id": "a", "attempt": 1}
    model.save(tmp_path / "best")
    curve = read_curve(tmp_path / "best")
    assert curve is not None
    assert curve.evaluations == [(0, 0, *wilson_interval(0, 4)), (640, 0.75, *wilson_interval(3, 4))]
    assert curve.evaluated_at == 640
    batches = success.batches(32)
    assert len(curve.training) == len(batches) > 1
    assert [point.rate for point in curve.training] == [sum(e.success for e in batch) / 32 for batch in batches]
    # The run went on from its best: the save beside it knows more, if it is of the same run.
    model.learn(64, success, reset_num_timesteps=False)
    evaluation.history.append(EvaluatedEpisodes(704, [EpisodeResult(0, 0, True, 9)]))
    model.stateful_callbacks = {"SuccessCallback": success, "EvaluationCallback": evaluation}
    model.save(tmp_path / "model")
    later = read_curve(tmp_path / "best")
    assert later is not None
    assert [point.num_timesteps for point in later.evaluations] == [0, 640, 704]
    assert later.evaluated_at == 640
    shutil.rmtree(tmp_path / "model")
    model.run = {"id": "b", "attempt": 1}
    model.save(tmp_path / "model")
    assert read_curve(tmp_path / "best") == curve
    rounded = RunCurve.from_json(curve.to_json())
    assert [point[:2] for point in rounded.evaluations] == [point[:2] for point in curve.evaluations]


def test_no_run_has_no_curve_and_a_damaged_one_is_warned_of(tmp_path: Path) -> None:
    assert read_curve(None) is None
    assert read_curve(tmp_path) is None
    model = make_model()
    model.save(tmp_path / "run")
    assert read_curve(tmp_path / "run") is None  # it never learned
    (tmp_path / "run" / "state.json").write_text('{"counters": {"num_timesteps": 5}, "callbacks": {"a": 3}}')
    with pytest.warns(UserWarning, match="The report shows no learning curve: that of '.*run' cannot be read"):
        assert read_curve(tmp_path / "run") is None


def test_the_curve_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    curve = RunCurve.from_json(CURVE)
    wide, narrow = plot(curve, "wide"), plot(curve, "narrow")
    for drawn in (wide, narrow):
        assert [mark.x for mark in drawn.marks] == [
            drawn.left,
            pytest.approx((drawn.left + drawn.right) / 2),
            drawn.right,
        ]
        share = [(drawn.bottom - mark.y) / (drawn.bottom - drawn.top) for mark in drawn.marks]
        assert share == pytest.approx([0.525, 0.75, 0.95], abs=2e-3)
        assert all(mark.high < mark.y < mark.low for mark in drawn.marks)  # y goes down
        assert drawn.evaluated_at == drawn.right
        assert len(drawn.band.split()) == 4
    assert [mark.text for mark in wide.marks] == ["52 %", "75 %", "95 %"]
    assert [tick.text for tick in narrow.x_ticks] == ["0", "1,000", "2,000"]
    close = curve._replace(
        evaluations=[point._replace(num_timesteps=2038 + i) for i, point in enumerate(curve.evaluations)]
    )
    assert [mark.text for mark in plot(close, "narrow").marks] == ["", "", "95 %"]  # labels never overlap
    page = Page(report_page(with_curve(report_of("+-")), tmp_path))
    assert page.row("1,024")[1:] == ["75.0 %", "59.8 to 85.8 %"]
    assert page.values("viewbox") == ["0 0 980 340", "0 0 342 280"]
    summary = "evaluations, from 52 % at timestep 0 to 95 % at timestep 2,048"
    summary = f"Success of {summary}; training episodes, from 66 % at timestep 230 to 81 % at timestep 900."
    assert page.values("aria-label").count(summary) == 2


def test_ticks_are_round_and_few() -> None:
    assert whole_ticks(4096, 10) == list(range(0, 4097, 500))
    assert whole_ticks(4096, 3) == [0, 2000, 4000]
    assert whole_ticks(1, 3) == [0, 1]
    assert whole_ticks(7_000_000, 1) == [0]
    for end in (1, 9, 99, 12_288, 10**9):
        assert len(whole_ticks(end, 4)) <= 5
    assert summarize(RunCurve.from_json(CURVE).training[:1]) == "66 % at timestep 230"


# ------------------------------------------------------------------------------------------------ comparison


def test_before_and_after_stand_side_by_side(tmp_path: Path) -> None:
    first = report_of("+" * 4 + "-" * 16)
    second = report_of("-" + "+" * 13 + "-" * 6)
    second.manifest["model"] = {"name": "runs/ppo/model"}
    comparison = compare_reports(first, second)
    page = Page(comparison_page(first, second, tmp_path))
    for row in (comparison.first, comparison.second):
        assert describe_row(row) in page.text
    sides = f"before 4/10 = 40.0 % {_interval(4, 10)} after 9/10 = 90.0 % {_interval(9, 10)}"
    assert page.row("0 open the drawer")[1:] == [sides, "+50.0", "states 4-9", "state 0"]
    assert page.row("1 push the plate")[2:] == ["+40.0", "states 0-3", ""]
    assert page.row("all tasks")[2:] == ["+45.0", "10 episodes", "1 episode"]
    assert "+45.0 points" in page.text
    assert "On the 20 episodes that both ran, 10 were gained and 1 lost: p = 0.0117 (McNemar, exact" in page.text
    assert "The difference is significant at 5 %." in page.text
    assert "not comparable" not in page.text
    assert page.row("renderer") == ["renderer", "exact", "exact"]
    reverse = Page(comparison_page(second, first, tmp_path))
    assert reverse.row("0 open the drawer")[2:] == ["\N{MINUS SIGN}50.0", "state 0", "states 4-9"]


def _interval(successes: int, n: int) -> str:
    low, high = wilson_interval(successes, n)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def test_what_cannot_be_compared_says_so(tmp_path: Path) -> None:
    first = report_of("-" * 20)
    page = Page(comparison_page(first, report_of("+" * 12 + "-" * 8, first_state=10, renderer="fast"), tmp_path))
    assert "The two are not comparable: the difference need not be the model's." in page.text
    assert "renderer: 'exact' against 'fast'." in page.text
    assert "No episode was run by both, so they are compared as independent samples." in page.text
    assert "McNemar" not in page.text
    assert page.row("0 open the drawer")[3:] == ["", ""]
    other = Page(comparison_page(first, report_of("++", suite="libero_10"), tmp_path))
    assert [row[0] for row in other.rows if row and row[0].startswith("libero")] == ["libero_goal", "libero_10"]
    assert "not run" in other.row("libero_10")[1]


def test_only_what_both_ran_is_compared(tmp_path: Path) -> None:
    first, second = report_of("+-+-"), report_of("++++")
    second.episodes = [episode for episode in second.episodes if episode.init_state_id == 1]
    page = Page(comparison_page(first, replace(second, complete=False), tmp_path))
    assert page.row("0 open the drawer")[2:] == ["+100.0", "state 1", ""]
    assert "The second report is of an interrupted evaluation (2 episodes)." in page.text


def test_the_command_writes_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = report_of("+-" + "--"), report_of("++" + "-+")
    film(tmp_path / "b", second, {})
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    film(tmp_path / "b", second, {(1, 0): 6})
    for after in ("b", "b/report.json"):
        out = tmp_path / after.replace("/", "_")
        cli.main(["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / after), "--out", str(out)])
        assert f"Wrote {out / 'comparison.html'}" in capsys.readouterr().out
        text = (out / "comparison.html").read_text()
        assert text == comparison_page(first, second, tmp_path / "b")
        assert Page(text).tags.count("video") == 1


def damaged(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CURVE | changes).items() if value is not None}


@pytest.mark.parametrize(
    "content",
    [
        5,
        damaged(evaluations=None),
        damaged(training=[[1, 0.5, 0.4]]),
        damaged(training=[[1, 0.5, 0.4, 1.5]]),
        damaged(training=[[1.5, 0.5, 0.4, 0.6]]),
        damaged(evaluations=[[1, "<b>", 0.4, 0.6]]),
        damaged(evaluated_at=-1),
    ],
)
def test_a_damaged_curve_is_no_curve(content: Any) -> None:
    with pytest.raises(ValueError, match="expected points of timestep, rate, low and high"):
        RunCurve.from_json(content)
