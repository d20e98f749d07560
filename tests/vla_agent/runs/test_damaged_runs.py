"""Damage of saved runs: every kind is one sentence of a `RunError`, whether or not checksums could tell it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, fake_env
from safetensors.torch import load_file, save_file
from saved_runs import fake, fake_model

from vla_agent import VLAPPO
from vla_agent.runs.documents import fault
from vla_agent.runs.run_files import CHECKSUMS, FILES, RunError, damage

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with moments for every parameter, in the middle of episodes."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    fake_model().learn(32).save(folder)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy without checksums, as older versions wrote runs, so that the content alone can tell."""
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    (folder / CHECKSUMS).unlink()
    return folder


def load(path: Path, **kwargs: Any) -> VLAPPO:
    return VLAPPO.load(path, fake_env(2), device="cpu", **fake(), **kwargs)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    result = change(document)
    path.write_text(json.dumps(document if result is None else result))


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    """Sets what lies under keys of a document."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[Any], None]:
    """Removes what lies under keys of a document."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def becomes(value: Any) -> Callable[[Any], Any]:
    return lambda document: value


DOCUMENTS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("hyperparameters", becomes([]), "expected an object at its top, got list"),
    ("hyperparameters", becomes({}), "has format None"),
    ("hyperparameters", becomes({"format": 2}), "policy is missing"),
    ("hyperparameters", put("format", value="2"), "has format 2"),
    ("hyperparameters", drop("base_model"), "base_model is missing"),
    ("hyperparameters", put("base_model", value="tiny"), "base_model is 'tiny'; expected an object"),
    ("hyperparameters", drop("base_model", "fingerprint"), r"base_model\.fingerprint is missing"),
    ("hyperparameters", put("policy", value="MlpPolicy"), "made with the policy class MlpPolicy"),
    ("hyperparameters", put("policy", value=["VLAPolicy"]), "policy is .*; expected a text"),
    ("hyperparameters", put("arguments", value=[]), r"arguments is \[\]; expected an object"),
    ("hyperparameters", put("arguments", "learning_rate", value="fast"), r"arguments\.learning_rate is 'fast'"),
    ("hyperparameters", put("arguments", "learning_rate", value=float("nan")), r"arguments\.learning_rate is nan"),
    ("hyperparameters", put("arguments", "learning_rate", value=10**400), r"arguments\.learning_rate is 1000"),
    ("hyperparameters", put("arguments", "learning_rate", value={"LinearSchedule": [1]}), "damaged"),
    ("hyperparameters", put("arguments", "learning_rate", value={"LinearSchedule": "x"}), "expected a list"),
    ("hyperparameters", put("arguments", "gamma", value=[0.9]), r"arguments\.gamma is \[0\.9\]"),
    (
        "hyperparameters",
        put("arguments", "n_steps", value=0),
        r"arguments\.n_steps is 0; expected a whole number from 1",
    ),
    ("hyperparameters", put("arguments", "n_steps", value=2**33), r"arguments\.n_steps is 8589934592; expected"),
    ("hyperparameters", drop("arguments", "n_epochs"), "it has no 'n_epochs', which every run of VLAPPO has"),
    ("hyperparameters", put("arguments", "n_steps", value=2.5), r"arguments\.n_steps is 2\.5"),
    ("hyperparameters", put("arguments", "value_loss", value=3), r"arguments\.value_loss is 3; expected a text"),
    ("hyperparameters", put("arguments", "_init_setup_model", value=True), "the argument '_init_setup_model'"),
    ("hyperparameters", put("policy_kwargs", value=None), "policy_kwargs is None; expected an object"),
    ("hyperparameters", put("policy_kwargs", "nonsense", value=1), "nonsense"),
    ("hyperparameters", put("policy_kwargs", "optimizer_class", value={"optimizer": "lr_scheduler"}), "no optimizer"),
    ("hyperparameters", put("n_envs", value=10**9), "n_envs is 1000000000; expected a whole number from 1 to"),
    ("hyperparameters", put("n_envs", value=0), "n_envs is 0"),
    ("hyperparameters", put("observation_space", value={}), "hyperparameters.json' is damaged"),
    (
        "hyperparameters",
        put("observation_space", value={"Dict": {"a": {"Box": {}}}}),
        "hyperparameters.json' is damaged",
    ),
    (
        "hyperparameters",
        put("observation_space", value={"Box": {"low": 0, "high": 1, "shape": [10**12], "dtype": "float32"}}),
        "larger than any observation",
    ),
    ("hyperparameters", put("action_space", value={"MultiDiscrete": "x"}), "hyperparameters.json' is damaged"),
    ("state", becomes({}), "counters is missing"),
    ("state", becomes([]), "expected an object at its top, got list"),
    ("state", drop("counters", "n_iterations"), r"counters\.n_iterations is missing"),
    ("state", put("counters", "num_timesteps", value="many"), r"counters\.num_timesteps is 'many'"),
    ("state", put("counters", "_current_progress_remaining", value=float("inf")), "is inf; expected a finite number"),
    ("state", put("episodes", value=[{}]), r"episodes\[0\]\.r is missing"),
    ("state", put("episodes", value=3), "episodes is 3; expected a list"),
    ("state", put("successes", value=["yes"]), r"successes\[0\] is 'yes'"),
    ("state", drop("generators"), "generators is missing"),
    ("state", put("generators", "torch", value="00"), "no states of random generators"),
    ("state", put("generators", "torch", value="xyz"), "no states of random generators"),
    ("state", put("generators", "numpy", value=["MT19937"]), "no states of random generators"),
    ("state", put("generators", "python", value=[3, [1, 2], None]), "no states of random generators"),
    ("state", put("environments", value={}), r"environments\.settings is missing"),
    ("state", put("environments", "lengths", value=[0]), "its environments are not the 2 of the run"),
    ("state", put("environments", "venv", value={}), r"state\.json' is damaged"),
    ("state", put("environments", "venv", "generators", value=[1]), r"state\.json' is damaged"),
    ("state", put("episode_starts", value=None), "its environments are not the 2 of the run"),
    ("state", put("callbacks", value=[]), r"callbacks is \[\]; expected an object"),
    ("optimizer", becomes([]), "expected an object at its top, got list"),
    ("optimizer", drop("class"), "class is missing"),
    ("optimizer", put("groups", value=[]), "0 groups of parameters, and this policy's 2"),
    ("optimizer", put("groups", 0, "params", value=[]), "its group 0 has other parameters"),
    ("optimizer", put("groups", 0, "lr", value="fast"), "lr of group 0 is 'fast'"),
    ("optimizer", put("groups", 0, "lr", value=float("nan")), "lr of group 0 is nan"),
    ("optimizer", drop("groups", 1, "lr"), r"no learning rate \(lr\)"),
    ("optimizer", put("groups", 0, "betas", value=[0.9]), "betas of group 0"),
    ("optimizer", put("scalars", value={"nothing|step": 1}), "of no parameter of this policy"),
]


@pytest.mark.parametrize(("name", "change", "match"), DOCUMENTS, ids=[f"{n}-{m}" for n, _, m in DOCUMENTS])
def test_documents_that_are_not_as_written_are_told(
    run: Path, name: str, change: Callable[[Any], Any], match: str
) -> None:
    load(run)  # so that nothing else is wrong
    edit(run / f"{name}.json", change)
    with pytest.raises(RunError, match=match) as error:
        load(run)
    assert str(run) in str(error.value)


@pytest.mark.parametrize("name", [name for name in (*FILES, CHECKSUMS) if name.endswith(".json")])
@pytest.mark.parametrize(
    ("content", "match"), [(DEEP, "nested too deeply"), ("", "no JSON"), ("\udcff", "no UTF-8"), ("null", "NoneType")]
)
def test_what_is_no_json_is_told(run: Path, name: str, content: str, match: str) -> None:
    (run / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=f"{name}' is damaged: .*{match}"):
        load(run)
    assert name in (damage(run) or "")


def first(tensors: dict[str, th.Tensor], ending: str = "") -> str:
    return min(name for name in tensors if name.endswith(ending) and tensors[name].is_floating_point())


def fill(value: float, ending: str = "") -> Callable[[dict[str, th.Tensor]], None]:
    def change(tensors: dict[str, th.Tensor]) -> None:
        tensors[first(tensors, ending)].view(-1)[0] = value

    return change


def reshape(tensors: dict[str, th.Tensor]) -> None:
    name = first(tensors, "exp_avg")
    tensors[name] = th.zeros(3, 5)


def lose(tensors: dict[str, th.Tensor]) -> None:
    del tensors[first(tensors, "step")]


def rename(tensors: dict[str, th.Tensor]) -> None:
    tensors["nothing|exp_avg"] = tensors.pop(first(tensors, "exp_avg"))


def shrink(tensors: dict[str, th.Tensor]) -> None:
    name = first(tensors)
    tensors[name] = tensors[name].to(th.float8_e4m3fn)


TENSORS: list[tuple[str, Callable[[dict[str, th.Tensor]], None], str]] = [
    ("policy", fill(float("nan")), "{name} holds NaN or infinity"),
    ("policy", fill(float("inf")), "{name} holds NaN or infinity"),
    ("policy", shrink, r"{name} is of type torch\.float8_e4m3fn"),
    ("policy", lambda tensors: tensors.clear(), "are not those of this policy"),
    ("optimizer", fill(float("nan"), "exp_avg"), "{name} holds NaN or infinity"),
    ("optimizer", fill(float("inf"), "exp_avg_sq"), "{name} holds NaN or infinity"),
    ("optimizer", reshape, r"{name} has shape \(3, 5\), and the parameter"),
    ("optimizer", lose, "lacks step"),
    ("optimizer", rename, "of no parameter of this policy"),
]


@pytest.mark.parametrize(("file", "change", "match"), TENSORS)
def test_tensors_that_cannot_be_gone_on_from_are_named(
    run: Path, file: str, change: Callable[[dict[str, th.Tensor]], None], match: str
) -> None:
    path = run / f"{file}.safetensors"
    before = load_file(path)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    moved = [
        name
        for name in before
        if name not in tensors or before[name].dtype != tensors[name].dtype or not th.equal(before[name], tensors[name])
    ]
    with pytest.raises(RunError, match=match.replace("{name}", moved[0].replace("|", r"\|"))):
        load(run)


# ------------------------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_noticed(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    assert damage(folder) is None
    content = bytearray((folder / name).read_bytes())
    position = content.rindex(b"1") if name.endswith(".json") else len(content) - 3
    content[position] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name}' is damaged: its checksum is not the one in checksums.json"):
        load(folder)
    assert name in (damage(folder) or "")


def test_runs_of_before_checksums_load_with_a_note(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load(run)
    assert "before runs had checksums" in caplog.text
    assert damage(run) is None


def test_damage_is_told_of_what_is_missing_cut_or_no_run(run: Path, tmp_path: Path) -> None:
    assert "There is no saved run" in (damage(tmp_path / "nothing") or "")
    assert "lacks" in (damage(tmp_path) or "")
    content = (run / "policy.safetensors").read_bytes()
    (run / "policy.safetensors").write_bytes(content[: len(content) // 2])
    assert "policy.safetensors" in (damage(run) or "")
    (run / "policy.safetensors").unlink()
    assert "lacks policy.safetensors" in (damage(run) or "")


@pytest.mark.parametrize("newest", ["checkpoints/0000000064", "interrupted"])
def test_a_damaged_checkpoint_says_what_else_there_is(saved: Path, tmp_path: Path, newest: str) -> None:
    for age, name in enumerate(["checkpoints/0000000016", "checkpoints/0000000032", "checkpoints/0000000048", newest]):
        folder = Path(shutil.copytree(saved, tmp_path / "x" / name))
        os.utime(folder, (age, age))
    for name in ("checkpoints/0000000032", newest):
        (tmp_path / "x" / name / "policy.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="is damaged") as error:
        load(tmp_path / "x" / newest)
    way = tmp_path / "x" / "checkpoints" / "0000000048"
    assert f"--resume '{way}', or VLAPPO.load('{way}', env)" in str(error.value)
    assert "0000000016" in str(error.value)
    assert "0000000032" not in str(error.value)
    load(way)


# ----------------------------------------------------------------------------------------------------------- others


def test_another_base_model_is_told_in_one_line(run: Path) -> None:
    other = FakeBackbone()
    other.processor = FakeProcessor("other")
    with pytest.raises(RunError, match="another base model than the FakeBackbone given is now") as error:
        VLAPPO.load(run, policy_kwargs={"model": other})
    assert "\n" not in str(error.value)


def test_learning_without_an_environment_says_how_to_get_one(run: Path) -> None:
    model = VLAPPO.load(run, device="cpu", **fake())
    with pytest.raises(ValueError, match=r"give VLAPPO\.load\(path, env\), or call set_env\(env\)"):
        model.learn(32)
    model.set_env(fake_env(2))
    model.learn(32)


@pytest.mark.parametrize(
    ("value", "form", "wrong"),
    [
        ({"a": 1}, {"a": int}, None),
        ({"a": True}, {"a": int}, "a is True; expected a whole number"),
        ({"a": 1.0}, {"a": float}, None),
        ({"a": float("nan")}, {"a": float}, "a is nan; expected a finite number"),
        ({"a": [1, "x"]}, {"a": [int]}, r"a[1] is 'x'; expected a whole number"),
        ({}, {"a": object}, "a is missing"),
        ([], {}, "the document is []; expected an object"),
        (None, (str, type(None)), None),
        (3, (str, type(None)), "the document is 3; expected a text or null"),
        ({"b": 1}, ({"a": int}, type(None)), "a is missing"),
        (7, range(1, 5), "the document is 7; expected a whole number from 1 to 4"),
    ],
)
def test_a_form_names_what_does_not_fit(value: Any, form: Any, wrong: str | None) -> None:
    assert fault(value, form) == wrong
