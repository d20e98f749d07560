"""What is no policy of LeRobot is refused by its files, in one sentence, whether LeRobot is installed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla_agent.actors import PolicyError, load_actor
from vla_agent.actors.lerobot_folder import read_folder

CONFIG: dict[str, Any] = {
    "type": "act",
    "input_features": {
        "observation.images.image": {"type": "VISUAL", "shape": [3, 64, 64]},
        "observation.images.image2": {"type": "VISUAL", "shape": [3, 64, 64]},
        "observation.state": {"type": "STATE", "shape": [8]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [7]}},
}
STEPS: dict[str, Any] = {"name": "p", "steps": [{"registry_name": "device_processor", "config": {"device": "cpu"}}]}


def folder_of(folder: Path, config: Any = CONFIG, before: Any = STEPS) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "policy_preprocessor.json").write_text(json.dumps(before))
    (folder / "policy_postprocessor.json").write_text(json.dumps(STEPS))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def with_input(key: str, shape: list[int]) -> dict[str, Any]:
    return CONFIG | {"input_features": CONFIG["input_features"] | {key: {"type": "VISUAL", "shape": shape}}}


def test_a_folder_says_what_its_policy_reads(tmp_path: Path) -> None:
    read = read_folder(folder_of(tmp_path))
    assert read.cameras == {"observation.images.image": "agentview", "observation.images.image2": "wrist"}
    assert (read.kind, read.reads_state, read.image_size, read.steps) == ("act", True, 64, ["device_processor"])


def test_frames_are_found_under_the_name_before_they_are_renamed(tmp_path: Path) -> None:
    renaming = {"observation.images.image": "observation.images.camera9"}
    step = {"registry_name": "rename_observations_processor", "config": {"rename_map": renaming}}
    config = CONFIG | {"input_features": {"observation.images.camera9": {"type": "VISUAL", "shape": [3, 32, 32]}}}
    read = read_folder(folder_of(tmp_path, config, {"steps": [step]}))
    assert read.cameras == {"observation.images.image": "agentview"}
    assert (read.image_size, read.reads_state) == (32, False)


def test_renamings_that_are_none_rename_nothing(tmp_path: Path) -> None:
    for config in (None, {"rename_map": {"observation.images.image": ["b"]}}, {"rename_map": 3}):
        step = {"registry_name": "rename_observations_processor", "config": config}
        read = read_folder(folder_of(tmp_path, CONFIG, {"steps": [step]}))
        assert sorted(read.cameras.values()) == ["agentview", "wrist"]


def test_an_empty_camera_is_left_to_the_policy(tmp_path: Path) -> None:
    read = read_folder(folder_of(tmp_path, with_input("observation.images.empty_camera_0", [3, 480, 640])))
    assert sorted(read.cameras.values()) == ["agentview", "wrist"]


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ({"image": "agentveiw"}, "camera of the frames called 'image': 'agentveiw'. Did you mean 'agentview'"),
        (
            {"imge": "agentview"},
            "cameras names 'imge', and the policy in .* reads 'image', 'image2'. Did you",
        ),
    ],
)
def test_cameras_that_are_none(tmp_path: Path, cameras: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_folder(folder_of(tmp_path), cameras)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "openvla"}, "is no LeRobot policy's: expected type, input_features, output_features"),
        ([], "is damaged: expected an object at its top"),
        (CONFIG | {"output_features": {"action": {"shape": [14]}}}, r"gives actions of shape \(14,\); LIBERO's have 7"),
        (with_input("observation.state", [6]), r"reads a state of shape \(6,\); LIBERO's has 8"),
        (with_input("observation.images.image2", [3, 48, 64]), "expected one square size"),
        (with_input("observation.images.image2", [3, 32, 32]), "expected one square size"),
        (with_input("observation.images.top", [3, 64, 64]), "reads frames called 'top', which may be any camera"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load_actor(f"lerobot:{folder_of(tmp_path, config)}")


def test_a_step_that_would_run_code_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none of LeRobot's registry \(mine.Step\), which would run code of its own"):
        read_folder(folder_of(tmp_path, before={"steps": [{"class": "mine.Step", "config": {}}]}))
    with pytest.raises(PolicyError, match="no pipeline of LeRobot's: expected a list of steps"):
        read_folder(folder_of(tmp_path, before={"steps": 3}))


def test_no_python_file_of_a_checkpoint_runs(tmp_path: Path) -> None:
    """LeRobot asks transformers for it in four places."""
    from transformers import AutoProcessor, dynamic_module_utils

    from vla_agent.actors.lerobot import no_foreign_code

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "evil.Evil"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil:\n    pass\n")
    own = dynamic_module_utils.get_class_in_module
    with no_foreign_code(), pytest.raises(PolicyError, match=r"would run Python code that comes with it \(Evil of"):
        AutoProcessor.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert not (tmp_path / "ran").exists()
    assert dynamic_module_utils.get_class_in_module is own
    with pytest.raises(AttributeError):  # of an empty class: this is how it runs elsewhere
        AutoProcessor.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"There is no folder '.*absent'"):
        load_actor(f"lerobot:{tmp_path / 'absent'}")
    with pytest.raises(PolicyError, match=r"it has no config.json\."):
        load_actor(f"lerobot:{tmp_path}")
    folder_of(tmp_path)
    (tmp_path / "policy_preprocessor.json").unlink()
    (tmp_path / "policy_postprocessor.json").unlink()
    with pytest.raises(PolicyError, match=r"has no policy_preprocessor.json; older policies are given theirs by"):
        load_actor(f"lerobot:{tmp_path}")
