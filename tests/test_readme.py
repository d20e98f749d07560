"""What the README and its pages show is so: commands parse, paths exist, tables are complete, the snippets run."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from cloning import small_model
from evaluations import SimProcessor
from fakes import FakeBackbone, fake_env
from outcomes import recorded
from paths import ROOT, without_opengl
from stable_baselines3.common.logger import configure

from libero_gym.rewards import TERMS
from vla_agent import VLAGRPO, VLAPPO, Curriculum, EvaluationCallback, VLADistillation
from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.health import ACTION_DIM_NAMES
from vla_agent.commands import cli, finetune
from vla_agent.commands.offline import Method, mark
from vla_agent.commands.options import parse_options
from vla_agent.process_reward import VecProcessReward
from vla_agent.test_time.critic_training import CriticMetrics

README = ROOT / "README.md"
ROOMS = ("libero_gym", "vla_agent", "vla_agent/engines", "examples", "benchmarks")
PAGES = [README, *(ROOT / room / "README.md" for room in ROOMS)]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# "How it is built" tells a newcomer at least these.
TOLD = {
    ("libero_gym/env/env.py", "LiberoEnv.step"),
    ("libero_gym/simulation/controller.py", "run_substeps"),
    ("libero_gym/simulation/goals.py", "Predicate"),
    ("vla_agent/algorithms/ppo.py", "VLAPPO.train"),
    ("vla_agent/algorithms/ppo.py", "VLAPPO._losses"),
    ("vla_agent/algorithms/rollout.py", "play"),
    ("vla_agent/algorithms/engine.py", "Engine"),
    ("vla_agent/algorithms/base.py", "VLALearner"),
    ("vla_agent/backbone.py", "VLABackbone"),
    ("vla_agent/policy/loading.py", "register_backbone"),
    ("libero_gym/tasks.py", "register_suite"),
    ("libero_gym/vector/backend.py", "Backend"),
}


# ----------------------------------------------------------------------------------------- reading Markdown


def fences(page: Path, language: str) -> list[str]:
    """The page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", prose(page), re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of a text's table rows, without headings' rules."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[| -]+", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def spans(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """The page's headings as code hosts link to them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that the page shows, one list per part between ``&&``."""
    shown = "".join(fences(page, "bash")).replace("\\\n", " ").splitlines()
    shown += [span for span in spans(prose(page)) if re.match(r"(python|libero-vla|pip) ", span)]
    for line in shown:
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


# --------------------------------------------------------------------------------------------- the README


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_quickstart_runs_as_printed_without_opengl(tmp_path: Path) -> None:
    environment, agent = fences(README, "python")
    script = tmp_path / "quickstart.py"
    script.write_text(environment + agent)
    command = [sys.executable, str(script)]
    result = subprocess.run(command, cwd=tmp_path, env=without_opengl(), capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "pick up the black bowl on the cookie box and place it on the plate (128, 128, 3) (8,)" in result.stdout
    assert (tmp_path / "runs" / "quickstart" / "policy.safetensors").is_file()


def test_a_reward_of_ones_own_is_learned_from_as_printed() -> None:
    (recipe,) = [block for block in fences(ROOT / "vla_agent" / "README.md", "python") if "StayLow" in block]
    defined: dict[str, Any] = {}
    exec(recipe, defined)
    rewards, height = defined["model"].rollout_buffer.rewards, 1.0
    assert ((rewards < 0) & (rewards > -0.1 * 2 * height)).all()  # no success in four decisions


def test_a_model_acts_in_a_gymnasium_loop_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (loop,) = [block for block in fences(ROOT / "vla_agent" / "README.md", "python") if "StepwisePolicy" in block]
    exec(loop, {})
    assert capsys.readouterr().out == "True\n"


def test_install_commands_are_those_of_the_continuous_integration() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    shown = list(commands(README))
    found = re.search(r"^packages=\((.*)\)$", script, flags=re.MULTILINE)
    assert found
    assert ["sudo", "apt-get", "install", *found[1].split()] in shown
    installed = re.findall(r"^pip install (?:--\S+ )*(-c .*)$", script, flags=re.MULTILINE)
    assert installed
    for arguments in installed:
        assert ["pip", "install", *shlex.split(arguments)] in shown, f"the README does not say pip install {arguments}"
    (tests,) = [words for words in shown if "pytest" in words]
    assert shlex.join(tests) in script
    (first, second) = [
        line for line in "".join(fences(README, "bash")).splitlines() if line.startswith("python3 -m venv")
    ]
    assert first.endswith(" && pip install -c constraints.txt -e . && python examples/train_ppo.py")
    assert second.endswith(' && pip install -c constraints.txt -e ".[test]" && ' + shlex.join(tests))


def test_readme_shows_every_command() -> None:
    shown = {words[1] for words in commands(README) if words[0] == "libero-vla"}
    assert shown == set(cli.COMMANDS)


def test_how_it_is_built_names_what_the_files_define() -> None:
    told = set()
    for _, paths, names in rows(section(README, "How it is built"))[1:]:
        files = spans(paths)
        told |= {(path, "") for path in files}
        for name in spans(names):
            where = [path for path in files if name in defined(ROOT / path)]
            assert where, f"none of {files} defines {name}"
            told |= {(path, name) for path in where}
    assert told >= TOLD, f"not told: {sorted(TOLD - told)}"


def defined(path: Path) -> set[str]:
    """A file's functions, classes and annotated names, and methods as "Class.method"."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


# ---------------------------------------------------------------------------------------------- all pages


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    relative = [link for link in links if not re.match(r"https?://", link)]
    assert relative
    for link in relative:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} of {page}"
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), f"{link} of {page}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_exist(page: Path) -> None:
    """Paths in backticks; the folder of a bare Python file is in the same paragraph or row, or is the page's."""
    for block in re.split(r"\n\n|\n(?=[|-])", prose(page)):
        shown = [span for span in spans(block) if re.fullmatch(r"[\w.][\w./-]*", span)]
        paths = [span for span in shown if span.split("/")[0] in (*ROOMS, "tests", ".ci", "results") and "/" in span]
        folders = [page.parent, ROOT / "examples"]
        for path in paths:
            base = page.parent if path.startswith("results/") else ROOT
            assert (base / path).exists(), f"`{path}` in {page}"
            folders.append(base / path if (base / path).is_dir() else (base / path).parent)
        for name in shown:
            if "/" not in name and name.endswith(".py"):
                assert any((folder / name).is_file() for folder in folders), f"`{name}` in {page}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_can_be_imported(page: Path) -> None:
    """What a page calls ``libero_gym.something`` or ``vla_agent.something`` exists."""
    text = page.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"(?<![\w./-])(?:libero_gym|vla_agent)(?:\.[A-Za-z_]\w*)+(?!/)", text))):
        *modules, last = name.split(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name in ("warp", "mujoco_warp"):  # the extra [gpu]: the module itself is there
                continue
            assert hasattr(importlib.import_module(".".join(modules)), last), f"{name} in {page}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_can_be_given(page: Path) -> None:
    """Scripts exist, and take the options that are shown; those of examples and of ``libero-vla`` in full."""
    for words in commands(page):
        if words[0] == "libero-vla" and len(words) > 2 and words[2] == "|":
            assert {word for word in words[1:] if word != "|"} <= set(cli.COMMANDS), words
        elif words[0] == "libero-vla":
            module = importlib.import_module(cli.COMMANDS[words[1]][0])
            if words[2:]:
                parse_options(module.Options, None, words[2:])
        elif words[0] == "python" and words[1].startswith("examples/"):
            options = options_of(ROOT / words[1])
            if "--help" not in words:
                parse_options(options, None, words[2:])
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            known = constants(ROOT / words[1])
            for word in words[2:]:
                assert not word.startswith("--") or {word, word[2:]} & known, f"{words[1]} has no {word}"


def options_of(script: Path) -> type[Any]:
    """The dataclass of an example's options; it lies where the example's ``main`` does."""
    spec = importlib.util.spec_from_file_location(f"shown_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where the fields' types are looked up
    spec.loader.exec_module(module)
    return sys.modules[module.main.__module__].Options


def constants(script: Path) -> set[str]:
    """The strings in a script's code."""
    nodes = ast.walk(ast.parse(script.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


# ----------------------------------------------------------------------------------------------- complete


def test_ids_are_those_of_the_registry() -> None:
    shown = [
        span
        for cells in rows(section(ROOT / "libero_gym" / "README.md", "Environment ids"))
        for span in spans(" ".join(cells))
    ]
    ids = [span for span in shown if span.startswith("LIBERO-")]
    assert len(ids) == len(set(ids))
    assert set(ids) == {name for name in gym.registry if name.startswith("LIBERO-")}


def test_results_are_explained() -> None:
    listed = [span for cells in rows(prose(ROOT / "benchmarks" / "README.md"))[1:] for span in spans(cells[-1])]
    named = {name for name in listed if (ROOT / "benchmarks" / "results" / name).is_file()}
    folder = ROOT / "benchmarks" / "results"
    tracked = subprocess.run(["git", "ls-files", "."], cwd=folder, capture_output=True, text=True).stdout.split()
    files = tracked or [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert set(files) - named == set()


class Brightness:
    """A reward model: how bright a frame is."""

    camera = "image"

    def score(self, images: np.ndarray, instructions: list[str]) -> np.ndarray:
        return images.reshape(len(images), -1).mean(axis=1) / 255


def test_glossary_defines_the_metrics_and_no_others(tmp_path: Path) -> None:
    """Trainings that log whatever there is: PPO with every addition, SB3's policy, GRPO, distillation, offline."""
    backbone = FakeBackbone()
    backbone.processor = SimProcessor()
    model = VLAPPO(
        "VLAPolicy",
        VecProcessReward(fake_env(max_episode_steps=4), Brightness()),
        n_steps=8,
        batch_size=4,
        clip_range_vf=0.2,
        kl_ref_coef=0.1,
        critic_warmup_iterations=1,
        policy_kwargs={"model": backbone, "lora": {"r": 2}},
        device="cpu",
    )
    evaluation = EvaluationCallback(
        "LIBERO-Spatial-v0",
        eval_freq=16,
        task_ids=[2],
        init_state_ids=[5],
        protocol="training",
        renderer="fast",
        max_episode_steps=3,
    )
    logged = metrics_of(model, 64, [Curriculum("hardest"), evaluation], tmp_path / "every")
    continuous = VLAPPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, device="cpu")
    logged |= metrics_of(continuous, 64, [], tmp_path / "continuous")
    grouped = VLAGRPO(
        "VLAPolicy", fake_env(), n_episodes=4, group_size=2, device="cpu", policy_kwargs={"model": FakeBackbone()}
    )
    logged |= metrics_of(grouped, 16, [], tmp_path / "grouped")
    taught = VLADistillation(
        *("VLAPolicy", fake_env(), FakeBackbone(seed=1)),
        n_steps=8,
        batch_size=8,
        policy_kwargs={"model": FakeBackbone()},
    )
    logged |= metrics_of(taught, 16, [], tmp_path / "taught")
    logged |= {f"rollout/reward_{term}" for terms in TERMS.values() for term in terms}
    logged |= {f"critic/{name}" for name in (*CriticMetrics._fields, "held_out_auc")}  # of train-critic
    logged |= {"scorer_auc", "scorer_rank_correlation", "ms_per_decision"}  # of reports
    logged |= offline_metrics(tmp_path)
    glossary = {
        name for cells in rows(section(ROOT / "vla_agent" / "README.md", "Metrics"))[1:] for name in spans(cells[0])
    }
    assert len(glossary) > 40
    assert glossary == logged


def offline_metrics(folder: Path) -> set[str]:
    """The metrics of every method of offline learning."""
    data = recorded()
    model = small_model(folder / "model")
    model.config.norm_stats = {"libero": data.statistics()}
    methods = (finetune.Options(method=method) for method in get_args(Method))
    return {name for options in methods for name in mark(options, model, recorded(), folder / options.method)}


def metrics_of(model: VLALearner, total_timesteps: int, callbacks: list[Any], folder: Path) -> set[str]:
    """The metrics that a training logs, as the glossary writes them."""
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(total_timesteps, callbacks)
    with (folder / "progress.csv").open() as stream:
        columns = set(next(csv.reader(stream)))
    dims = {f"train/entropy_{name}" for name in ACTION_DIM_NAMES}
    if dims <= columns:
        columns = columns - dims | {"train/entropy_<dim>"}
    return {re.sub(r"task_\d+$", "task_<id>", column) for column in columns}
