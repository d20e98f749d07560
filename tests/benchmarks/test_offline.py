"""The evidence for offline learning: commands that exist, cells by name, and what made-up cells give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import offline
import pytest
from forty.session import CellError, Stopped

from libero_gym.demonstrations.lerobot_layout import INFO_PATH
from vla_agent.commands import evaluate, finetune, record
from vla_agent.commands.options import parse_options


def write_info(root: Path) -> None:
    """Leave what says that episodes were recorded."""
    path = root / "episodes" / INFO_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


class NoTime:
    """A session that keeps the command lines, and runs none."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def run(self, command: Sequence[str], *arguments: Any) -> None:
        self.lines.append(list(command)[3:])
        raise Stopped


def first_line(do: str, *arguments: Any, folder: Path) -> list[str]:
    session: Any = NoTime()
    with pytest.raises(Stopped):
        getattr(offline.Work(folder, offline.Scale(), session), do)(*arguments)
    return session.lines[0]


def test_the_steps_are_commands_that_these_sources_have(tmp_path: Path) -> None:
    name, *given = first_line("record", folder=tmp_path)
    recorded = parse_options(record.Options, None, given)
    assert (name, recorded.sample, recorded.temperature, recorded.init_states) == ("record", True, 0.7, "20-49")
    with pytest.raises(CellError, match="the episodes that it learns from are not here"):
        offline.Work(tmp_path, offline.Scale()).do("awr", 3)
    write_info(tmp_path)
    for method in offline.METHODS:
        name, *given = first_line("do", method, 3, folder=tmp_path)
        options = parse_options(finetune.Options, None, given)
        assert (name, options.method, options.seed, options.model) == (
            "finetune",
            offline.METHODS[method].get("method", method),
            3,
            recorded.policy,
        )
        assert options.demonstrations == str(recorded.out) == str(tmp_path / "episodes")
        assert offline.Work(tmp_path, offline.Scale()).has_episodes
        finetune.check_options(options)
    name, *given = first_line("judge_start", folder=tmp_path)
    judging = parse_options(evaluate.Options, None, given)
    assert (name, judging.model, judging.init_states, judging.sample) == ("evaluate", recorded.policy, "0-19", False)


def test_steps_of_another_machine_are_not_done_again_and_its_episodes_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.jsonl"
    for step in ("episodes", "start", "filtered/0"):
        keep(tmp_path / "there", step, 1, 0)
    offline.store.pack(tmp_path / "there", kept)
    work = offline.Work(tmp_path / "here", offline.Scale(), kept=kept)
    offline.store.unpack(kept, work.root)
    assert offline.run(work, [("filtered", 0)], 0, 1) == 0
    assert capsys.readouterr().out == ""
    assert offline.run(work, [("filtered", 0), ("awr", 0)], 0, 1) == 0
    assert "Stopped at episodes; the same command goes on from there." in capsys.readouterr().out
    write_info(work.root)
    assert offline.run(work, [("filtered", 0), ("awr", 0)], 0, 1) == 0
    assert "Stopped at awr/0" in capsys.readouterr().out
    work._keep("awr/0", work._note("awr/0"), {"judged": {}})
    assert offline.store.unpack(kept, tmp_path / "later")[0] == "done/awr/0.json"


def test_cells_are_chosen_by_patterns_and_a_whole_name_adds_a_seed() -> None:
    assert offline.chosen([])[:4] == [("filtered", 0), ("awr", 0), ("tagged", 0), ("filtered-as-demos", 0)]
    assert offline.chosen(["*-as-demos/*"]) == [("filtered-as-demos", 0), ("awr-as-demos", 0)], "one seed"
    assert offline.chosen(["awr/*", "tagged/7"]) == [("awr", 0), ("awr", 1), ("awr", 2), ("tagged", 7)]
    for wrong in ("best/0", "awr", "awr/x"):
        with pytest.raises(ValueError, match=r"No cell '.*'; expected METHOD/SEED\. Methods: filtered, awr, tagged"):
            offline.chosen([wrong])


def keep(root: Path, step: str, *won: int) -> None:
    """A finished step whose episodes of two tasks ended so, by both decodings."""
    episodes = [[index // 2, index % 2, value] for index, value in enumerate(won)]
    content = {"seconds": {"train": 60.0}, "judged": dict.fromkeys(offline.DECODINGS, episodes), "metrics": {}}
    path = root / "done" / f"{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_the_table_holds_methods_against_the_start_and_the_baseline(tmp_path: Path) -> None:
    work = offline.Work(tmp_path, offline.Scale())
    with pytest.raises(ValueError, match="Nothing is finished"):
        offline.results(work)
    keep(tmp_path, "start", 0, 0, 0, 1)
    keep(tmp_path, "filtered/0", 1, 0, 0, 1)
    keep(tmp_path, "awr/0", 1, 1, 0, 1)
    keep(tmp_path, "awr/1", 1, 1, 1, 1)
    found = offline.results(work)
    rows = found["table"]["greedy"]
    assert (rows["start"]["successes"], rows["start"]["n"]) == (1, 4)
    assert (rows["awr"]["after"]["successes"], rows["awr"]["after"]["n"]) == (7, 8)
    assert rows["filtered"]["gain"]["points"] == 25.0
    assert rows["awr"]["gain"]["points"] == 62.5
    assert rows["awr"]["over_baseline"]["points"] == 37.5
    assert [row["points"] for row in rows["awr"]["by_seed"]] == [50.0, 75.0]
    assert "over_baseline" not in rows["filtered"]
    assert "| sampled | awr | 2 | 87.5 % (52.9 to 97.8) | +62.5 (" in offline.table(found)
    assert "awr/1        done  train 60 s" in offline.plan(work, [("awr", 1)])
