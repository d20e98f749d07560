"""Who may import whom. Rooms stand from the ground up; a room imports rooms of the lines above its own alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from code_shape import PACKAGES, circles, exceeded, imports, measure
from paths import ROOT

LIBERO_GYM = [
    {"common", "bddl", "dimensions", "equivalence", "gripper", "reward_model", "wrappers"},
    {"tasks", "benchmark"},
    {"stock"},
    {"simulation"},
    {"compilation", "experts", "rewards"},
    {"privileged"},
    {"observations"},
    {"rendering"},
    {"first_use"},
    {"env"},
    {"vector", "demonstrations", "doctor", "stock_api", "lerobot_env"},
    {"gpu"},
]
VLA_AGENT = [
    {"common", "action_tokens", "augmentation"},
    {"bins"},
    {"backbone", "callbacks", "episode_totals"},
    {"openvla"},
    {"policy"},
    {"runs"},
    {"sft", "process_reward"},
    {"offline"},
    {"envs"},
    {"algorithms", "actors", "test_time"},
    {"engines"},
    {"evaluation"},
    {"viewing"},
    {"commands"},
]
# The only rooms of vla_agent that may know more of libero_gym than its first layer: the door, and what users run.
DOORS = {"envs", "commands"}
# What puts a package together: its front page, and what runs at installation and start-up.
TOP = {"__init__", "registration", "custom", "plugin"}


def _room(file: str) -> str:
    return (file.split(".") + ["__init__"])[1]


@pytest.mark.parametrize(("package", "layers"), [("libero_gym", LIBERO_GYM), ("vla_agent", VLA_AGENT)])
def test_rooms_import_lower_rooms_alone(package: str, layers: list[set[str]]) -> None:
    level = {room: number for number, rooms in enumerate(layers) for room in rooms}
    arrows = {(_room(file), _room(other)) for file, others in imports(ROOT / package).items() for other in others}
    known = {(a, b) for a, b in arrows if a != b and a in level and b in level}
    assert {(a, b) for a, b in known if level[a] < level[b] or (level[a] == level[b] > 0)} == set()
    assert {room for arrow in arrows for room in arrow} - set(level) - TOP == set()


def test_environments_are_met_at_one_door_and_nothing_of_the_agent_by_them() -> None:
    graph = imports(*(ROOT / package for package in PACKAGES))
    arrows = {(file, _room(other)) for file, others in graph.items() for other in others if file[0] != other[0]}
    assert {file for file, _ in arrows if file.startswith("libero_gym")} == set()
    known = {(_room(file), room) for file, room in arrows if _room(file) not in DOORS and room not in LIBERO_GYM[0]}
    assert known == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_itself_through_others_and_no_limit_of_size_is_exceeded(package: str) -> None:
    assert exceeded(measure(package, ROOT / package)) == []


def test_a_circle_and_a_lazily_shown_name_are_seen(tmp_path: Path) -> None:
    files = {"__init__.pyi": "from .b import thing as thing", "__init__.py": "", "a.py": "from p import thing"}
    files |= {"b.py": "def late():\n    from p.c import other", "c.py": "import p.a"}
    for name, text in files.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    assert circles(imports(tmp_path / "p")) == [["p.a", "p.b", "p.c"]]
