"""What an evaluation takes over from a folder is of the same model and frames, or it says what is not known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import BLIND, SMALL, Noise, fake_model
from policy_servers import PolicyServer

from vla_agent import Evaluator, compare_reports, evaluate_policy
from vla_agent.evaluation import ReportError
from vla_agent.evaluation import before_after as before_after_module
from vla_agent.evaluation import evaluator as evaluator_module
from vla_agent.evaluation.before_after import film_change
from vla_agent.evaluation.policies import Subject
from vla_agent.evaluation.provenance import describe_model
from vla_agent.evaluation.trials import Trial

ONE: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "n_envs": 1, **BLIND}


class Const:
    """Always takes the same bin, which its class does not tell."""

    def __init__(self, bin: int) -> None:
        self.bin = bin

    def predict(self, obs: Any, deterministic: bool = True) -> tuple[np.ndarray, None]:
        return np.full((len(obs["state"]), 7), self.bin), None


class Stated(Const):
    def fingerprint(self) -> Any:
        return f"bin {self.bin}"


class Still:
    """An `Actor`."""

    cameras = ()

    def act(self, observations: Any, env_ids: Any) -> np.ndarray:
        return np.zeros((len(env_ids), 7))


class Described(Still):
    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description


def halved(images: np.ndarray) -> np.ndarray:
    return images // 2


@pytest.mark.parametrize("make", [lambda: Const(3), Still, lambda: Described({})])
def test_an_object_of_which_only_the_class_is_known_takes_nothing_over(tmp_path: Path, make: Callable[[], Any]) -> None:
    options = {name: value for name, value in ONE.items() if name != "cameras" or isinstance(make(), Const)}
    report = evaluate_policy(make(), out=tmp_path, **options)
    assert report.complete
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kind = type(make()).__name__
    with pytest.raises(
        ReportError,
        match=rf"episodes\.jsonl' holds 1 episode of a {kind}, and nothing tells this {kind} from another: give "
        r"another folder, remove it, or give the class a method fingerprint\(\)",
    ):
        evaluate_policy(make(), out=tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "episodes.jsonl").unlink()
    assert evaluate_policy(make(), out=tmp_path, **options).complete


def test_an_object_that_states_its_identity_goes_on_as_that_alone(tmp_path: Path) -> None:
    first = evaluate_policy(Stated(3), out=tmp_path, **ONE)
    assert first.manifest["model"]["fingerprint"] == "bin 3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = evaluate_policy(Stated(3), out=tmp_path, **ONE)
    assert again.timing == first.timing, "nothing was played"
    with pytest.raises(ReportError, match=r"of another evaluation: model is .*'bin 3'.* and not .*'bin 200'"):
        evaluate_policy(Stated(200), out=tmp_path, **ONE)
    described = [evaluate_policy(Described({"weights": name}), out=tmp_path / "b", **ONE) for name in "aa"]
    assert described[0].episodes == described[1].episodes
    with pytest.raises(ReportError, match="of another evaluation"):
        evaluate_policy(Described({"weights": "b"}), out=tmp_path / "b", **ONE)


def test_a_fingerprint_is_a_text() -> None:
    stated = Stated(3)
    stated.fingerprint = lambda: 3  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"Stated\.fingerprint\(\) gave 3; expected a text"):
        describe_model(stated, None, None)


def test_episodes_of_a_server_are_taken_over_with_a_warning(tmp_path: Path) -> None:
    options = {**ONE, "protocol": "openpi", "init_state_ids": [0, 1]}
    del options["cameras"], options["processor"]
    with PolicyServer() as server:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate_policy(server.address, out=tmp_path, **options)
        told = r"takes over 2 episodes of '.*episodes\.jsonl'; whether the server has the same weights as then is not"
        with pytest.warns(UserWarning, match=told) as caught:
            evaluate_policy(server.address, out=tmp_path, **options)
    assert [Path(warning.filename).name for warning in caught] == ["one_evaluation.py"]


def test_a_named_class_goes_on_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_go_on.py").write_text(
        "import numpy as np\nclass Mine:\n    def act(self, obs, ids):\n        return np.zeros((len(ids), 7))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {name: value for name, value in ONE.items() if name not in ("cameras", "processor")}
    evaluate_policy("python:mine_to_go_on:Mine", out=tmp_path / "out", **options)
    with pytest.warns(UserWarning, match=r"takes over 1 episode of .*'python:mine_to_go_on:Mine' has the same file"):
        evaluate_policy("python:mine_to_go_on:Mine", out=tmp_path / "out", **options)


def test_frames_of_another_size_or_kind_are_another_evaluation(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "n_envs": 1, "center_crop": False, **SMALL}
    # The fake model takes 16 pixels.
    small = evaluate_policy(fake_model(), out=tmp_path, **options)
    large = evaluate_policy(fake_model(), image_size=32, **options)
    own = evaluate_policy(fake_model(), image_transform=halved, **options | {"center_crop": None})
    names = ("image_size", "rendered_size", "image_transform", "center_crop")
    assert [small.settings[name] for name in names] == [16, 16, "none", False]
    assert [large.settings[name] for name in names] == [16, 32, "published", False]
    assert own.settings["center_crop"] is False
    assert own.settings["image_transform"].split(" (")[0].endswith("test_going_on.halved")
    assert "rendered_size: 16 against 32." in compare_reports(small, large).choices
    with pytest.raises(ReportError, match="rendered_size is 16 and not 32; image_transform is 'none' and not 'publi"):
        evaluate_policy(fake_model(), out=tmp_path, **options | {"image_size": 32})
    with pytest.raises(ReportError, match=r"image_transform is 'none' and not '.*test_going_on\.halved"):
        evaluate_policy(fake_model(), out=tmp_path, **options | {"image_transform": halved})
    bound = options | {"image_transform": lambda images, by=2: images // by, "out": tmp_path / "own"}
    evaluate_policy(fake_model(), **bound)
    with pytest.raises(ReportError, match="holds 1 episode, and nothing tells whether their image_transform was"):
        evaluate_policy(fake_model(), **bound)


def test_a_journal_of_before_states_no_rendered_size(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "n_envs": 1, **SMALL}
    evaluate_policy(fake_model(), out=tmp_path, **options)
    journal = tmp_path / "episodes.jsonl"
    stated = ', "rendered_size": 16, "image_transform": "none"'
    assert stated in journal.read_text()
    journal.write_text(journal.read_text().replace(stated, ""))
    assert evaluate_policy(fake_model(), out=tmp_path, **options).complete
    assert stated in journal.read_text()


def test_tasks_and_states_may_be_iterators() -> None:
    def once(ids: list[int]) -> Iterator[int]:
        yield from ids

    options = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    with Evaluator(Noise(), task_ids=once([1, 0]), init_state_ids=once([2]), n_envs=1, **options) as evaluator:  # type: ignore[arg-type]
        assert evaluator.trials == [Trial(1, 2), Trial(0, 2)]
    states: Any = {"init_state_ids": "unseen", "task_ids": once([3])}
    with Evaluator(Noise(), **states, n_envs=1, **options) as evaluator:
        assert evaluator.task_ids == [3]


class Closed(Still):
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_named_policy_is_closed_if_a_later_check_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Closed()
    monkeypatch.setattr(evaluator_module, "load_subject", lambda *_: Subject(actor, "ws://localhost:1"))
    options = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    with pytest.raises(ValueError, match="center_crop is for our models"):
        Evaluator("ws://localhost:1", task_ids=[0], init_state_ids=[0], center_crop=True, **options)
    assert actor.closed == 1


def test_a_film_closes_what_it_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[Any] = []

    def load(model: Any, device: Any) -> Subject:
        if model == "gone":
            raise ValueError("gone")
        loaded.append(Closed())
        return Subject(loaded[-1], model)

    monkeypatch.setattr(before_after_module, "load_subject", load)
    with pytest.raises(ValueError, match="gone"):
        film_change("ws://localhost:1", "gone", "LIBERO-Spatial-v0", Trial(0, 0), tmp_path / "film.mp4")
    assert [actor.closed for actor in loaded] == [1]
