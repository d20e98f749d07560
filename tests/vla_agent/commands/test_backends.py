"""Where environments are simulated is an option; what makes no sense of it is one sentence, before anything slow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vla_agent import Evaluator
from vla_agent.commands import cli
from vla_agent.envs.backends import backend_arguments, evaluation_arguments


def test_the_arguments_of_environments_name_the_device_of_worlds_alone() -> None:
    assert backend_arguments("processes", "auto", "cpu") == {}
    assert backend_arguments("warp", "auto", "cpu") == {"backend": "warp", "device": "cpu"}
    assert backend_arguments("warp", "cuda:1", "cpu") == {"backend": "warp", "device": "cuda:1"}
    with pytest.raises(ValueError, match="backend_device='cuda:1' is for worlds on a device, and backend is 'process"):
        backend_arguments("processes", "cuda:1", "cpu")


def test_workers_are_replaced_and_worlds_cannot_be() -> None:
    assert evaluation_arguments({"n_workers": 1}, "cpu") == {"restart": True, "n_workers": 1}
    assert evaluation_arguments({"restart": False}, "cpu") == {"restart": False}
    assert "restart" not in evaluation_arguments({"backend": "warp"}, "cpu")


def test_an_evaluator_refuses_a_device_for_processes() -> None:
    with pytest.raises(ValueError, match='take backend="warp", or leave backend_device out'):
        Evaluator("tiny", init_state_ids=[0], task_ids=[0], backend_device="cuda:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "--backend-device", "cuda:1"],
            "--backend-device cuda:1 is for worlds on a device: add --b",
        ),
        (["train", "--backend-device", "cuda:1"], "--backend-device cuda:1 is for worlds on a device: add --b"),
        (["train", "--keep-on-device"], "--keep-on-device is for worlds on a device: add --backend warp"),
        (["evaluate", "--across-simulations"], "--across-simulations is for two evaluations: add --compare"),
    ],
)
def test_options_of_worlds_need_worlds(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_without_mujoco_warp_a_command_names_the_extra(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(SystemExit):
        cli.main([command, "--backend", "warp", "--out", str(tmp_path / "out")])
    assert "which is not installed; the extra [gpu] brings it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
