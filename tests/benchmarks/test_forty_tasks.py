"""The evidence over forty tasks: which cells there are, going on after a kill, and what made-up cells give."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forty.session
import forty.work
import forty_tasks
import numpy as np
import pytest
from forty import plan, report, store
from forty.cells import SUITES, Cell, Group, as_arguments, chosen, judging_arguments, parse, planned, training_options
from forty.evidence import Evidence, results
from forty.session import CellError, Note, Session, Stopped, locked
from forty.work import Work, start_id
from gains import gain_by_state, mean_in_points, paired, rate
from paths import example

from vla_agent import RunError
from vla_agent.commands import distill, evaluate, train
from vla_agent.commands.options import parse_options
from vla_agent.evaluation.results import EpisodeResult

GROUPS = {
    "strong": Group("tiny-libero", {suite: (0, 1) if suite == "goal" else (0,) for suite in SUITES}, {"n_envs": 2}),
    "hard": Group("tiny-libero", {"spatial": (0,)}, {"curriculum": "hardest"}, against="strong"),
    "together": Group("tiny-libero", {"forty": (0,)}, {"total_timesteps": 400}, against="strong"),
}


# -------------------------------------------------------------------------------------------------- cells


def test_first_seeds_of_every_group_come_before_second_seeds() -> None:
    names = [cell.name for cell in planned(forty_tasks.GROUPS)]
    assert len(names) == len(set(names)) == 34
    assert names[:7] == [
        *("strong/spatial/0", "strong/object/0", "strong/goal/0", "strong/10/0"),
        *("short/10/0", "few/spatial/0", "few/object/0"),
    ]
    first = [name for name in names if name.endswith("/0")]
    assert names[: len(first)] == first
    assert names.index("few/spatial/1") < names.index("few-falling/spatial/1") < names.index("few/spatial/2")
    assert names[-7:] == [
        *("strong/spatial/2", "strong/goal/2", "few/spatial/2", "few/object/2"),
        *("few-longer/spatial/2", "few-cooler/spatial/2", "few-grpo/spatial/2"),
    ]


def test_patterns_choose_cells_and_a_whole_name_adds_a_seed() -> None:
    found = chosen(forty_tasks.GROUPS, ["few*/spatial/0", "strong/10/7"])
    assert [cell.name for cell in found] == [
        *("few/spatial/0", "few-process/spatial/0", "few-hardest/spatial/0", "few-frontier/spatial/0"),
        *(
            "few-grpo/spatial/0",
            "few-grpo-time/spatial/0",
            "few-rloo/spatial/0",
            "few-gain/spatial/0",
            "few-confidence/spatial/0",
        ),
        *("few-distilled/spatial/0", "strong/10/7"),
    ]
    for wrong in ("strong/spatail/0", "strong/spatial", "weak/*", "strong/spatial/-1"):
        with pytest.raises(ValueError, match=r"No cell '.*'; expected GROUP/SUITE/SEED such as strong/spatial/0"):
            chosen(forty_tasks.GROUPS, [wrong])


def cells_of(script: str, on_judged: bool = False) -> list[Cell]:
    wanted = (script, on_judged)
    groups = {name for name, group in forty_tasks.GROUPS.items() if (group.script, group.on_judged) == wanted}
    return [cell for cell in planned(forty_tasks.GROUPS) if cell.group in groups]


@pytest.mark.parametrize("cell", cells_of("train_ppo.py"), ids=lambda cell: cell.name)
def test_every_cell_gives_the_train_command_what_it_takes(cell: Cell) -> None:
    """And keeps apart the states that train, that choose the best, and that judge."""
    options = training_options(forty_tasks.GROUPS[cell.group], cell)
    parsed = parse_options(train.Options, None, as_arguments(options))
    assert {name: getattr(parsed, name) for name in options} == options
    train.check(parsed)
    assert parsed.init_states == "20-49"
    assert parsed.eval_states == ""
    evaluation = train.make_evaluation(parsed)
    assert list(evaluation.kwargs["init_state_ids"]) == []
    drawn = evaluation.kwargs["placement_seeds"]
    assert len(drawn) >= 5
    assert min(drawn) >= parsed.n_placements


@pytest.mark.parametrize("cell", cells_of("train_grpo.py"), ids=lambda cell: cell.name)
def test_cells_of_another_script_give_it_what_it_takes_and_differ_in_the_method_alone(cell: Cell) -> None:
    group = forty_tasks.GROUPS[cell.group]
    options = training_options(group, cell)
    parsed = parse_options(example(group.script).Options, None, as_arguments(options))
    assert {name: getattr(parsed, name) for name in options} == options
    ppo = parse_options(train.Options, None, as_arguments(training_options(forty_tasks.GROUPS[group.against], cell)))
    same = ("env_id", "task_ids", "model", "init_states", "n_placements", "eval_states", "n_eval_placements", "seed")
    same += ("physics", "autocast", "n_envs", "total_timesteps", "eval_freq", "temperature", "average_decay")
    assert {name: getattr(parsed, name) for name in same} == {name: getattr(ppo, name) for name in same}


@pytest.mark.parametrize("cell", cells_of("train_grpo.py", on_judged=True), ids=lambda cell: cell.name)
def test_test_time_training_sees_the_states_that_judge_and_no_success(cell: Cell) -> None:
    options = training_options(forty_tasks.GROUPS[cell.group], cell)
    parsed = parse_options(example("train_grpo.py").Options, None, as_arguments(options))
    judging = parse_options(evaluate.Options, None, judging_arguments("m", "spatial", "greedy", 0.7, "fast", True))
    assert (parsed.init_states, parsed.n_placements) == (judging.init_states, 0)
    assert judging.trained_states
    assert parsed.reward in ("gain", "confidence")
    assert parsed.failure_scorer == ""


@pytest.mark.parametrize("cell", cells_of("distill"), ids=lambda cell: cell.name)
def test_a_student_plays_what_its_teacher_trained_on(cell: Cell) -> None:
    group = forty_tasks.GROUPS[cell.group]
    options = training_options(group, cell)
    parsed = parse_options(distill.Options, None, as_arguments(options))
    assert {name: getattr(parsed, name) for name in options} == options
    taught = training_options(forty_tasks.GROUPS[group.teacher], cell)
    for name in ("env_id", "task_ids", "model", "eval_states", "n_eval_placements", "physics", "temperature"):
        assert getattr(parsed, name) == taught[name]


def test_decisions_of_one_model_for_all_are_those_of_four_runs() -> None:
    options = {name: group.options for name, group in forty_tasks.GROUPS.items()}
    for name in ("total_timesteps", "eval_freq"):
        assert options["together"][name] == 4 * options["strong"][name]


def test_judging_takes_the_states_that_nothing_trained_on() -> None:
    greedy = judging_arguments("m", "10", "greedy", 0.5, "fast")
    options = parse_options(evaluate.Options, None, greedy)
    assert (options.env_id, options.task_ids, options.init_states) == ("LIBERO-10-v0", "", "0-19")
    assert (options.protocol, options.renderer, options.sample) == ("training", "fast", False)
    drawn = parse_options(evaluate.Options, None, judging_arguments("m", "spatial", "sampled", 0.7, "exact"))
    assert (drawn.sample, drawn.temperature, drawn.renderer) == (True, 0.7, "exact")


def test_yes_and_no_become_options() -> None:
    assert as_arguments({"privileged_critic": False, "long": True, "n_envs": 4}) == [
        *("--no-privileged-critic", "--long", "--n-envs", "4")
    ]


# --------------------------------------------------------------------------------------------------- work

PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
arguments = sys.argv[1:]
out = Path(arguments[arguments.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out.parent / f"{out.name}.calls").open("a") as stream:
    stream.write(json.dumps(arguments + [os.environ["OMP_NUM_THREADS"]]) + "\\n")
"""
TRAIN = (
    PROCESS
    + """
def save(name):
    (out / name).mkdir(exist_ok=True)
    (out / name / "policy.safetensors").write_text(name)
    callbacks = {"EvaluationCallback": {"history": [[0, [[0, -301, True, 9], [1, -301, False, 9]]]]}}
    state = {"counters": {"num_timesteps": 7}, "callbacks": callbacks}
    (out / name / "state.json").write_text(json.dumps(state))
def stop(*_):
    save("interrupted")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
save("best")
if "--resume" not in arguments:
    (out / "began").touch()
    time.sleep(60)
save("model")
"""
)
EVALUATE = (
    PROCESS
    + """
if out.name.startswith("10-") and (out.parent / "broken").exists():
    sys.exit("no LIBERO-10 here")
"""
)


JUDGED = [EpisodeResult(task, state, state > 0, 9) for task in (0, 1) for state in (0, 1, 2)]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A work folder whose trainings and evaluations take no time; a training ends only if it is resumed."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "train_ppo.py").write_text(TRAIN)
    (scripts / "evaluate.py").write_text(EVALUATE)

    def latest(folder: Path) -> Path:
        for path in (folder, folder / "model", folder / "interrupted"):
            if path.is_dir() and path.name in ("model", "interrupted"):
                return path
        raise RunError("nothing saved")

    class Report:
        manifest = {"commit": "abc"}
        episodes = JUDGED

    def finished(folder: Path) -> Report | None:
        return Report() if (folder.parent / f"{folder.name}.calls").exists() else None

    monkeypatch.setattr(forty.work, "EXAMPLES", scripts)
    monkeypatch.setattr(forty.work, "latest_run", latest)
    monkeypatch.setattr(forty.work, "finished_report", finished)
    monkeypatch.setattr(forty.work, "read_curve", lambda folder: None)
    return Work(tmp_path / "work", GROUPS)


def calls(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stop_when(there: Callable[[], bool]) -> None:
    """Send this process a signal as soon as something is so."""

    def wait() -> None:
        end = time.monotonic() + 30
        while not there() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait).start()


def test_a_cell_is_stopped_goes_on_and_is_done_once(work: Work) -> None:
    cell = parse(GROUPS, "strong/spatial/0")
    folder = work.run_folder(cell)
    with Session().listening() as session:
        stop_when((folder / "began").exists)
        with pytest.raises(Stopped):
            work.do(cell, session)
    assert (folder / "interrupted").is_dir(), "SIGTERM let it save"
    assert not work.cell_file(cell).exists()
    starts = sorted((work.root / "before").glob("*/*.json"))
    assert [path.name for path in starts] == ["spatial-greedy-fast.json", "spatial-sampled-0.5-fast.json"]
    assert work.note(cell).seconds["train"] > 0

    work.do(cell, Session())
    begun, resumed = calls(folder.parent / "ppo.calls")
    assert begun[:-1] == [*as_arguments(training_options(GROUPS["strong"], cell)), "--existing", "aside", *begun[-3:-1]]
    assert resumed[-5:] == ["--resume", str(folder), "--out", str(folder), "1"]
    content = json.loads(work.cell_file(cell).read_text())
    assert content["decisions"] == 7
    assert content["evaluations"] == [[0, {"0": [1, 1], "1": [0, 1]}]]
    assert set(content["judged"]) == {"best", "last"}, "their weights differ"
    assert content["judged"]["best"]["spatial"]["greedy"]["episodes"][:2] == [[0, 0, 0, 9], [0, 1, 1, 9]]
    assert content["settings"]["start"] == start_id("tiny-libero")
    assert content["settings"]["options"]["n_envs"] == 2
    before = work.cell_file(cell).stat().st_mtime_ns
    work.do(cell, Session())
    assert work.cell_file(cell).stat().st_mtime_ns == before
    assert len(calls(folder.parent / "ppo.calls")) == 2


def test_one_judgement_serves_a_best_that_is_the_last(work: Work) -> None:
    cell = parse(GROUPS, "strong/spatial/0")
    for name in ("best", "model"):
        folder = work.run_folder(cell) / name
        folder.mkdir(parents=True)
        (folder / "policy.safetensors").write_text("the same")
        (folder / "state.json").write_text('{"counters": {"num_timesteps": 7}, "callbacks": {}}')
    work.do(cell, Session())
    content = json.loads(work.cell_file(cell).read_text())
    assert content["best_is_last"]
    assert set(content["judged"]) == {"last"}


def test_a_student_is_given_its_teachers_run_once_it_is_there(work: Work) -> None:
    groups = GROUPS | {"taught": Group("tiny-libero", {"spatial": (0,)}, teacher="strong")}
    work = Work(work.root, groups)
    cell, teacher = parse(groups, "taught/spatial/0"), parse(groups, "strong/spatial/0")
    with pytest.raises(CellError, match=r"its teacher strong/spatial/0 is not trained here: `run --cells strong/sp"):
        work.do(cell, Session())
    assert "its teacher strong/spatial/0 is not trained here\n" in plan.describe(work, [cell])
    for trained in (teacher, cell):
        (work.run_folder(trained) / "interrupted").mkdir(parents=True)
        work.do(trained, Session())
    (arguments,) = calls(work.run_folder(cell).parent / "ppo.calls")
    assert arguments[arguments.index("--teacher") + 1] == str(work.run_folder(teacher))
    assert json.loads(work.cell_file(cell).read_text())["settings"]["teacher"] == "strong/spatial/0"


def test_a_cell_that_continues_another_copies_its_run_and_trains_the_rest(work: Work) -> None:
    longer = {"total_timesteps": 7, "learning_rate_end": 0.0}
    strong = Group("tiny-libero", {"spatial": (0,)}, {"total_timesteps": 5})
    groups = {"strong": strong, "longer": Group("tiny-libero", {"spatial": (0,)}, longer, continues="strong")}
    work = Work(work.root, groups)
    cell, earlier = parse(groups, "longer/spatial/0"), parse(groups, "strong/spatial/0")
    with pytest.raises(CellError, match=r"what it continues, strong/spatial/0 is not trained here: `run --cells str"):
        work.do(cell, Session())
    model = work.run_folder(earlier) / "model"
    model.mkdir(parents=True)
    state = '{"counters": {"num_timesteps": 5}, "callbacks": {}}'
    (model / "state.json").write_text(state)
    (model / "policy.safetensors").write_text("after 5")
    assert plan.state(work, cell) == ("not begun", 2)
    part = work.run_folder(cell).with_name("copy")  # of a copy that was killed
    part.mkdir(parents=True)
    (part / "half").touch()

    work.do(cell, Session())
    (arguments,) = calls(work.run_folder(cell).parent / "ppo.calls")
    assert arguments[-5:-1] == ["--resume", str(work.run_folder(cell)), "--out", str(work.run_folder(cell))]
    content = json.loads(work.cell_file(cell).read_text())
    assert content["settings"]["continues"] == "strong/spatial/0"
    assert content["decisions"] == 7
    work.cell_file(cell).write_text(json.dumps(content | {"seconds": {"train": 10.0}}))
    assert plan.Rates(work, [cell]).training == {cell.name: (2, 10.0)}, "the others cost it nothing"
    assert (model / "state.json").read_text() == state, "the earlier run stays as it was"
    assert (model / "policy.safetensors").read_text() == "after 5"


def test_where_judged_states_train_the_last_model_alone_is_judged(work: Work) -> None:
    groups = GROUPS | {"gain": Group("tiny-libero", {"spatial": (0,)}, on_judged=True)}
    work = Work(work.root, groups)
    cell = parse(groups, "gain/spatial/0")
    (work.run_folder(cell) / "interrupted").mkdir(parents=True)
    work.do(cell, Session())
    content = json.loads(work.cell_file(cell).read_text())
    assert not content["best_is_last"]
    assert set(content["judged"]) == {"last"}
    (arguments,) = calls(work.run_folder(cell).parent / "last-spatial-greedy-fast.calls")
    assert "--trained-states" in arguments
    starts = work.root / "runs" / "before" / start_id("tiny-libero")
    assert "--trained-states" not in calls(starts / "spatial-greedy-fast.calls")[0], "the start has not trained there"
    figures = results(Evidence(work))
    assert list(figures["cells"][cell.name]["judged"]) == ["last"]
    assert f"| `{cell.name}` | last, 7 | Spatial |" in report.markdown(figures)


def test_the_peak_of_memory_is_that_of_all_processes_over_all_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import time; block = b'x' * 200_000_000; time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    note = Note(tmp_path / "note.json")
    monkeypatch.setattr(forty.session, "MEASURE_EVERY_S", 0.1)
    for code in (parent, "import time; time.sleep(0.5)"):
        Session().run([sys.executable, "-c", code], signal.SIGTERM, tmp_path / "output", note, "train")
    assert 190 < Note(tmp_path / "note.json").memory_mb["train"] < 400


def test_one_model_for_all_is_judged_on_each_suite_and_shares_the_starts_judgements(work: Work) -> None:
    cells = [parse(GROUPS, name) for name in ("strong/goal/0", "together/forty/0")]
    for cell in cells:
        (work.run_folder(cell) / "interrupted").mkdir(parents=True)
        work.do(cell, Session())
    content = json.loads(work.cell_file(cells[1]).read_text())
    assert list(content["judged"]["last"]) == list(SUITES)
    assert content["settings"]["options"]["env_id"] == "LIBERO-40-v0"
    asked = calls(work.run_folder(cells[1]).parent / "last-10-sampled-fast.calls")
    (arguments,) = asked
    assert arguments[:4] == ["--model", str(work.run_folder(cells[1]) / "model"), "--env-id", "LIBERO-10-v0"]
    starts = work.root / "runs" / "before" / start_id("tiny-libero")
    assert len(calls(starts / "goal-greedy-fast.calls")) == 1, "once for both cells"
    assert len(list(starts.glob("*.calls"))) == 8


def test_a_cell_of_other_settings_does_not_go_on(work: Work) -> None:
    cell = parse(GROUPS, "strong/spatial/0")
    with Session().listening() as session:
        stop_when((work.run_folder(cell) / "began").exists)
        with pytest.raises(Stopped):
            work.do(cell, session)
    changed = {**GROUPS, "strong": Group("tiny-libero", {"spatial": (0,)}, {"n_envs": 3, "gamma": 0.9})}
    with pytest.raises(CellError, match=r"other settings \(n_envs 2 and not 3, gamma default and not 0.9\)"):
        Work(work.root, changed).do(cell, Session())
    assert "at 7 of 6144 decisions, with other settings: n_envs 2" in plan.describe(Work(work.root, changed), [cell])


def test_a_failed_cell_says_why_and_the_next_goes_on(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("strong/10/0", "strong/goal/0"):
        (work.run_folder(parse(GROUPS, name)) / "interrupted").mkdir(parents=True)
    starts = work.root / "runs" / "before" / start_id("tiny-libero")
    starts.mkdir(parents=True)
    (starts / "broken").touch()
    assert forty_tasks.run(work, ["strong/10/0", "strong/goal/0"], None) == 1
    told = capsys.readouterr().out
    assert "strong/10/0: not done, since it ended with status 1 (no LIBERO-10 here)" in told
    assert "strong/goal/0: done" in told
    assert "Not done: strong/10/0." in told


def test_a_start_that_is_missing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path, {"few": Group("not-there", {"spatial": (0,)})})
    assert forty_tasks.run(work, [], None) == 1
    assert "few/spatial/0: not done, since its start 'not-there' is not there" in capsys.readouterr().out
    assert "its start 'not-there' is not there\n" in plan.describe(work, planned(work.groups))


def test_two_drivers_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="Another process works in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_no_process_begins_without_time(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        Session(0).run(["false"], signal.SIGTERM, tmp_path / "output", Note(tmp_path / "note.json"), "train")
    assert not (tmp_path / "output").exists()


def test_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    for _ in range(2):
        with Note(tmp_path / "note.json").timing("train"):
            time.sleep(0.2)
    assert 0.3 < Note(tmp_path / "note.json").seconds["train"] < 5


# ----------------------------------------------------------------------------------- pairing and the report


def test_pairs_are_of_the_same_states() -> None:
    before = {(0, 0): True, (0, 1): False, (0, 2): False, (0, 3): False}
    after = {(0, 3): True, (0, 0): False, (0, 1): True, (0, 2): True}
    assert paired(before, after) == {"points": 50.0, "gained": 3, "lost": 1, "mcnemar_p": 0.625}
    assert gain_by_state([before], [after, before]).tolist() == [-0.5, 0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"1 episodes are of one side alone, such as \(task, state\) \(0, 3\)"):
        paired(dict.fromkeys(list(before)[:3], True), after)
    with pytest.raises(ValueError, match="not of the same tasks and states"):
        gain_by_state([before], [{(1, 0): True}])


def test_the_mean_of_suites_weighs_suites_alike_and_its_interval_shrinks_with_states() -> None:
    small, large = np.array([1.0, 0.0] * 10), np.zeros(2000)
    found = mean_in_points([small, large])
    assert found["points"] == 25.0
    low, high = found["bootstrap_95"]
    # Half of the small suite's own standard error, 0.5 / sqrt(20) = 11.2 points, at 1.96 of them.
    assert (25 - low, high - 25) == (pytest.approx(10.96, abs=1.5), pytest.approx(10.96, abs=1.5))
    assert mean_in_points([np.zeros(50)])["bootstrap_95"] == [0, 0]


def episodes(share: float, seed: int) -> list[list[int]]:
    draws = np.random.default_rng(seed).random((10, 20)) < share
    return [[task, state, int(draws[task, state]), 100] for task in range(10) for state in range(20)]


def make_up(root: Path, groups: dict[str, Group], rates: Callable[[Cell], float], skip: Sequence[str] = ()) -> Work:
    """A work folder of finished cells whose models succeed as often as asked; starts succeed half the time."""
    work = Work(root, groups)
    for cell in planned(groups):
        if cell.name in skip:
            continue
        for before in [b._replace(start="start-1") for b in work.befores(cell)]:
            path = work.before_file(before)
            path.parent.mkdir(parents=True, exist_ok=True)
            found = episodes(0.5, 100 + list(SUITES).index(before.suite))
            content = {**before._asdict(), "renderer": "fast", "seconds": {f"judge {before.suite}": 150.0}}
            path.write_text(json.dumps({**content, "episodes": found}))
        n, total = (40, 163_840) if cell.suite == "forty" else (10, 40_960)
        steps, final = np.linspace(0, total, 6).round().tolist(), rates(cell)
        shares = np.linspace(0.5, final, 6)
        rng = np.random.default_rng(cell.seed)
        judged = {
            model: {
                suite: {
                    decoding: {"episodes": episodes(final - worse, 7 * cell.seed + len(suite)), "commit": "abc"}
                    for decoding, worse in (("greedy", 0.0), ("sampled", 0.1))
                }
                for suite in cell.judged_on
            }
            for model in ("best", "last")
        }
        content = {
            **{"group": cell.group, "suite": cell.suite, "seed": cell.seed, "decisions": total, "commits": ["abc"]},
            "settings": {"start": "start-1", "threads": 1, "options": training_options(groups[cell.group], cell)},
            **{"renderer": "fast", "temperature": 0.5, "provenance": {}, "best_is_last": False},
            "seconds": {"train": 2048.0, **{f"judge {suite}": 400.0 for suite in cell.judged_on}},
            "curve": {
                "evaluations": [[int(s), float(p), 0.0, 1.0] for s, p in zip(steps, shares, strict=True)],
                "training": [
                    [int(s), float(np.clip(0.4 + final * s / total / 2 + rng.normal(0, 0.05), 0, 1)), 0.0, 1.0]
                    for s in np.linspace(total / 60, total, 60)
                ],
                "evaluated_at": int(steps[4]),
            },
            "evaluations": [
                [int(s), {str(t): [round(10 * float(p)), 10] for t in range(n)}]
                for s, p in zip(steps, shares, strict=True)
            ],
            "judged": judged,
        }
        path = work.cell_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return work


@pytest.fixture
def made_up(tmp_path: Path) -> Work:
    return make_up(tmp_path / "work", GROUPS, lambda cell: {"strong": 0.9, "hard": 0.5, "together": 0.75}[cell.group])


def test_report_holds_the_figures_that_cells_hold(made_up: Work) -> None:
    evidence = Evidence(made_up)
    found = results(evidence)
    assert list(found["cells"]) == [
        *("strong/spatial/0", "strong/object/0", "strong/goal/0", "strong/goal/1", "strong/10/0"),
        *("hard/spatial/0", "together/forty/0"),
    ]
    goal = found["groups"]["strong"]["greedy"]["best"]["goal"]
    assert goal["seeds"] == [0, 1]
    assert (goal["before"]["n"], goal["after"]["n"]) == (200, 400)
    rows = [found["cells"][f"strong/goal/{seed}"]["judged"]["best"]["goal"]["greedy"] for seed in (0, 1)]
    assert goal["after"]["successes"] == sum(row["successes"] for row in rows)
    assert goal["gain"]["points"] == pytest.approx(np.mean([row["points"] for row in rows]), abs=0.01)
    assert "".join(rows[0]["outcomes"]).count("1") == rows[0]["successes"]
    mean = found["groups"]["strong"]["greedy"]["best"]["mean"]
    four = [found["groups"]["strong"]["greedy"]["best"][suite]["gain"]["points"] for suite in SUITES]
    assert mean["gain"]["points"] == pytest.approx(np.mean(four), abs=0.01)
    low, high = mean["gain"]["bootstrap_95"]
    assert low < mean["gain"]["points"] < high
    assert high - low < min(
        np.ptp(found["groups"]["strong"]["greedy"]["best"][s]["gain"]["bootstrap_95"]) for s in SUITES
    )


def test_groups_are_compared_on_the_seeds_that_both_have(made_up: Work) -> None:
    found = results(Evidence(made_up))["comparisons"]
    assert list(found) == ["hard - strong", "together - strong"]
    together = found["together - strong"]["greedy"]["best"]
    assert list(together) == [*SUITES, "mean"]
    assert [together[suite]["seeds"] for suite in SUITES] == [[0]] * 4
    assert together["goal"]["second"]["n"] == 200, "the second seed has nothing to be compared with"
    assert together["mean"]["difference"]["bootstrap_95"][1] < 0
    assert list(found["hard - strong"]["greedy"]["best"]) == ["spatial"]


def test_one_suite_says_the_same_by_hand(tmp_path: Path) -> None:
    """All succeed after; of the start 100 or so did, so gain and McNemar's test follow from that number alone."""
    work = make_up(tmp_path, {"one": Group("tiny-libero", {"object": (0,)})}, lambda cell: 1.1)
    found = results(Evidence(work))
    start = rate({(t, s): bool(x) for t, s, x, _ in episodes(0.5, 101)})["successes"]
    row = found["cells"]["one/object/0"]["judged"]["last"]["object"]["greedy"]
    assert (row["gained"], row["lost"]) == (200 - start, 0)
    assert row["mcnemar_p"] == pytest.approx(2 * 0.5 ** (200 - start))
    assert found["groups"]["one"]["greedy"]["best"]["object"]["gain"]["points"] == pytest.approx((200 - start) / 2)


def test_report_writes_tables_and_pictures_and_needs_no_run(made_up: Work, tmp_path: Path) -> None:
    out = tmp_path / "results" / "forty_tasks.json"
    told = report.write(made_up, out)
    assert not (made_up.root / "runs").exists()
    text = out.with_suffix(".md").read_text()
    assert text in told
    found = json.loads(out.read_text())
    best = found["groups"]["strong"]["greedy"]["best"]
    assert "| `strong` | Spatial | Object | Goal | LIBERO-10 | mean of 4 suites |" in text
    gain = best["mean"]["gain"]
    assert f"**{gain['points']:+.1f} ({gain['bootstrap_95'][0]:+.1f} to {gain['bootstrap_95'][1]:+.1f})** |" in text
    for cell in found["cells"]:
        assert f"| `{cell}` | best, " in text
        assert f"| `{cell}` | last, " in text
    assert "`python benchmarks/forty_tasks.py cell strong/spatial/0`" in text
    assert "| together - strong | mean of 4 |" in text
    widths = [{line.count(" | ") for line in table.splitlines() if line[:1] == "|"} for table in text.split("\n\n")]
    assert [len(width) for width in widths if width] == [1] * 4, "every row of a table has its columns"
    assert sorted(path.name for path in out.parent.glob("*.png")) == [
        "forty_tasks_strong.png", "forty_tasks_strong_variants.png", "forty_tasks_together.png",
    ]  # fmt: skip


def test_a_report_is_made_anew_from_what_was_kept(made_up: Work, tmp_path: Path) -> None:
    """On another machine, whose own files stay, and whose cells come beside those that were kept."""
    kept = tmp_path / "kept.jsonl"
    store.pack(made_up.root, kept)
    expected = results(Evidence(made_up))
    there = Work(tmp_path / "there", GROUPS)
    written = store.unpack(kept, there.root)
    found = results(Evidence(there))
    assert (found["cells"], found["groups"]) == (expected["cells"], expected["groups"])
    own = Work(tmp_path / "own", GROUPS)
    file = own.cell_file(parse(GROUPS, "strong/goal/1"))
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert store.unpack(kept, own.root) == [name for name in written if name != "cells/strong/goal/1.json"]
    assert file.read_text() == "{}"
    store.pack(tmp_path / "nothing", kept)
    assert store.unpack(kept, tmp_path / "later") == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"path": "../cells/a.json", "content": {}}',
            r"Line 1 of .* names '../cells/a.json'; expected a file of before",
        ),
        ('{"path": "cells/../../a.json", "content": {}}', "Line 1 of .* names 'cells/../../a.json'; expected"),
        ('{"path": "/cells/a.json", "content": {}}', "Line 1 of .* names '/cells/a.json'; expected"),
        ('{"path": "cells/a.py", "content": {}}', "Line 1 of .* names 'cells/a.py'; expected"),
        ('{"path": "", "content": {}}', "Line 1 of .* names ''; expected"),
        ("cells", "Line 1 of .* is no path and content"),
    ],
)
def test_a_kept_file_stays_in_its_folder(tmp_path: Path, line: str, message: str) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        store.unpack(kept, tmp_path / "work")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]


def test_a_cell_of_another_machine_has_its_start_judged_and_is_not_trained(work: Work) -> None:
    cell = parse(GROUPS, "strong/spatial/0")
    work.cell_file(cell).parent.mkdir(parents=True)
    work.cell_file(cell).write_text(json.dumps({"settings": {"start": start_id("tiny-libero")}}))
    assert not work.is_done(cell)
    work.do(cell, Session())
    assert work.is_done(cell)
    assert all(work.before_file(before).is_file() for before in work.befores(cell))
    assert not work.run_folder(cell).exists()
    work.cell_file(cell).write_text(json.dumps({"settings": {"start": "tiny-libero-of-before"}}))
    for before in work.befores(cell):
        work.before_file(before).unlink()
    assert work.is_done(cell), "its start is gone"


def test_cells_of_different_simulations_are_not_reported_together(made_up: Work) -> None:
    path = next(made_up.cells_folder.glob("strong/goal/1.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"provenance": {"versions": {"mujoco": "4.0.0"}}}))
    with pytest.raises(ValueError, match=r"These cells are of different simulations .*equivalent \(4\.0\.0\)"):
        Evidence(made_up)


def test_a_report_of_nothing_and_a_judgement_that_is_missing_are_one_sentence(made_up: Work, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No cell is finished in"):
        report.write(Work(tmp_path / "empty", GROUPS), tmp_path / "x.json")
    for path in (made_up.root / "before").glob("*/goal-sampled*.json"):
        path.unlink()
    with pytest.raises(ValueError, match="strong/goal/0 has no judgement of its start"):
        results(Evidence(made_up))


def test_plan_counts_hours_by_measured_rates(tmp_path: Path) -> None:
    work = make_up(tmp_path, GROUPS, lambda cell: 0.9, skip=["strong/goal/1", "together/forty/0"])
    rates = plan.Rates(work, planned(GROUPS))
    goal, forty = parse(GROUPS, "strong/goal/1"), parse(GROUPS, "together/forty/0")
    assert rates.decisions_per_s(goal) == pytest.approx(40_960 / 2048)
    # Starts: 2 of 200 episodes in 150 s each. The finished cell: 4 of 200 in 400 s.
    assert rates.s_per_episode("goal") == pytest.approx((2 * 150 + 400) / 1200)
    counted = {work.before_file(b) for b in [*work.befores(goal), *work.befores(forty)]}
    expected = 2000 / 20 + 4 * 200 * 700 / 1200
    assert plan.hours_left(work, goal, rates, 2000, counted) == pytest.approx(expected / 3600)
    told = plan.describe(work, planned(GROUPS))
    assert "7 cells, 5 done" in told
    assert "done, with other settings: start start-1 and not tiny-libero-" in told
    assert "Nothing there is deleted" in told
