"""Every wrong argument of recording, reading and fine-tuning is told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloning import SIZE, demonstrations, episode, small_model

from libero_gym.demonstrations import LeRobotWriter, record
from vla_agent.commands import finetune, progress
from vla_agent.openvla import OpenVLA
from vla_agent.sft.data import ActionChunks
from vla_agent.sft.settings import SFTSettings
from vla_agent.sft.trainer import SupervisedTrainer

NAN = float("nan")

# --------------------------------------------------------------------------------------------------------- fine-tuning

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"n_steps": 0}, r"n_steps=0 is out of range; expected a whole number of at least 1\."),
    ({"n_steps": -3}, r"n_steps=-3 is out of range"),
    ({"n_steps": True}, r"n_steps=True; expected a whole number"),
    ({"n_steps": 10.0}, r"n_steps=10\.0; expected a whole number"),
    ({"batch_size": 0}, r"batch_size=0 is out of range"),
    ({"batch_size": "16"}, r"batch_size='16'; expected a whole number"),
    ({"micro_batch_size": 0}, r"micro_batch_size=0 is out of range"),
    ({"micro_batch_size": -4}, r"micro_batch_size=-4 is out of range"),
    ({"micro_batch_size": 5}, r"micro_batch_size=5 does not divide batch_size=16"),
    ({"learning_rate": 0}, r"learning_rate=0 is out of range; expected a number above 0\."),
    ({"learning_rate": NAN}, r"learning_rate=nan; expected a number"),
    ({"learning_rate": "fast"}, r"learning_rate='fast'; expected a number"),
    ({"learning_rate": True}, r"learning_rate=True; expected a number"),
    ({"warmup_steps": -1}, r"warmup_steps=-1 is out of range"),
    ({"weight_decay": -0.1}, r"weight_decay=-0\.1 is out of range"),
    ({"max_grad_norm": 0}, r"max_grad_norm=0 is out of range"),
    ({"bin_sigma": -1}, r"bin_sigma=-1 is out of range"),
    ({"keyframe_coef": NAN}, r"keyframe_coef=nan; expected a number"),
    ({"ema_decay": 1}, r"ema_decay=1 is out of range; expected a number of 0 to below 1\."),
    ({"paraphrase": 1.5}, r"paraphrase=1\.5 is out of range; expected a number from 0 to 1\."),
    ({"paraphrase": "often"}, r"paraphrase='often'; expected a number from 0 to 1\."),
    ({"validation_share": 1.0}, r"validation_share=1\.0 is out of range"),
    ({"validation_share": -0.1}, r"validation_share=-0\.1 is out of range"),
    ({"seed": -1}, r"seed=-1 is out of range"),
    ({"seed": 1.5}, r"seed=1\.5; expected a whole number"),
    ({"learning_rat": 1e-3}, r"Unknown setting 'learning_rat'\. Did you mean 'learning_rate'\?"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_a_wrong_setting_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTSettings.from_dict(settings)


CHUNKS: list[tuple[dict[str, Any], str]] = [
    ({"image_size": 0}, r"image_size=0 is out of range"),
    ({"image_size": "28"}, r"image_size='28'; expected a whole number"),
    ({"image_size": True}, r"image_size=True; expected a whole number"),
    ({"chunk_size": 0}, r"chunk_size=0 is out of range"),
    ({"chunk_size": -2}, r"chunk_size=-2 is out of range"),
    ({"chunk_size": 2.0}, r"chunk_size=2\.0; expected a whole number"),
    ({"cut_waiting": "no"}, r"cut_waiting='no'; expected True or False"),
    ({"pad_chunks": 1}, r"pad_chunks=1; expected True or False"),
    ({"progress_bar": None}, r"progress_bar=None; expected True or False"),
    ({"cameras": "image"}, r"cameras='image'; expected a sequence, such as cameras=\('image',\)"),
    ({"cameras": ()}, r"cameras=\(\); expected observation keys"),
    ({"cameras": ("image", "image")}, r"expected observation keys, such as \('image',\), each once"),
    ({"cameras": (1,)}, r"cameras=\(1,\); expected observation keys"),
    ({"cameras": None}, r"cameras=None; expected a sequence"),
    ({"episodes": None}, r"episodes=None; expected episodes, such as LeRobotReader"),
    ({"episodes": "data/mine"}, r"episodes='data/mine'; expected episodes"),
    ({"episodes": [1]}, r"Episode 0 is a int; expected an `Episode`"),
    ({"episodes": [episode("push", 0.5, images={"image": [[1, 2]]})]}, r"frames of 'image' as int64 \(1, 2\)"),
]


@pytest.mark.parametrize(("arguments", "message"), CHUNKS)
def test_a_wrong_argument_of_action_chunks_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionChunks(**{"episodes": demonstrations(), "image_size": SIZE} | arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenVLA:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data() -> ActionChunks:
    return ActionChunks(demonstrations(), image_size=SIZE, chunk_size=2)


TRAINER: list[tuple[dict[str, Any], str]] = [
    ({"model": "openvla/openvla-7b"}, r"model is 'openvla/openvla-7b'; expected an `OpenVLA`"),
    ({"data": []}, r"data is \[\]; expected `ActionChunks`"),
    ({"unnorm_key": ""}, r"unnorm_key is ''; expected a name"),
    ({"unnorm_key": None}, r"unnorm_key is None; expected a name"),
    ({"statistics": []}, r"statistics is \[\]; expected None, or a dictionary"),
    ({"statistics": {}}, r"The statistics of 'action' do not describe 7 dimensions"),
    ({"statistics": {"action": {"q01": "low", "q99": "high"}}}, r"expected as many finite numbers in 'q01'"),
    ({"statistics": {"action": {"q01": [0.0] * 7, "q99": [NAN] * 7}}}, r"expected as many finite numbers in 'q99'"),
    ({"lora": 32}, r"lora is 32; expected None, or a dictionary such as"),
    ({"augmentation": True}, r"augmentation is True; expected None, or an `Augmentation`"),
]


@pytest.mark.parametrize(("arguments", "message"), TRAINER)
def test_a_wrong_argument_of_the_trainer_is_told(
    arguments: dict[str, Any], message: str, model: OpenVLA, data: ActionChunks
) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedTrainer(**{"model": model, "data": data} | arguments)


def test_a_wrong_number_of_steps_is_told(tmp_path: Path, data: ActionChunks) -> None:
    learner = SupervisedTrainer(small_model(tmp_path), data, n_steps=2, batch_size=2)
    with pytest.raises(ValueError, match="n_steps=-1 is out of range"):
        learner.train(-1)
    with pytest.raises(ValueError, match="max_examples=0 is out of range"):
        learner.validate(0)


# ----------------------------------------------------------------------------------------------- recording and reading

RECORD: list[tuple[dict[str, Any], str]] = [
    ({"max_steps": 0}, r"max_steps=0 is out of range; expected a whole number of at least 1\."),
    ({"max_steps": 2.5}, r"max_steps=2\.5; expected a whole number"),
    ({"noise_steps": 0}, r"noise_steps=0 is out of range"),
    ({"settle_steps": -1}, r"settle_steps=-1 is out of range"),
    ({"settle_steps": True}, r"settle_steps=True; expected a whole number"),
    ({"random_prefix": "8"}, r"random_prefix='8'; expected a whole number"),
    ({"seed": -1}, r"seed=-1 is out of range"),
    ({"seed": 1.0}, r"seed=1\.0; expected a whole number"),
    ({"action_noise": -0.1}, r"action_noise=-0\.1 is out of range"),
    ({"action_noise": NAN}, r"action_noise=nan; expected a number"),
    ({"action_noise": "0.1"}, r"action_noise='0\.1'; expected a number"),
    ({"random_action_prob": 1.5}, r"random_action_prob=1\.5 is out of range; expected a number from 0 to 1\."),
    ({"random_action_prob": True}, r"random_action_prob=True; expected a number"),
    ({"crf": -1}, r"crf=-1 is out of range"),
    ({"crf": 99}, r"crf=99 is out of range; expected a whole number from 0 to 51\."),
    ({"n_workers": -1}, r"n_workers=-1 is out of range"),
    ({"n_workers": True}, r"n_workers=True; expected a whole number"),
    ({"renderer": "quick"}, r"Unknown renderer 'quick'"),
    ({"record_intended": "yes"}, r"record_intended='yes'; expected True or False"),
    ({"keep_failures": 1}, r"keep_failures=1; expected True or False"),
    ({"progress_bar": "no"}, r"progress_bar='no'; expected True or False"),
    ({"cameras": "wrist"}, r"cameras='wrist'; expected a sequence, such as cameras=\('wrist',\)"),
    ({"cameras": ("wirst",)}, r"Unknown camera 'wirst'\. Did you mean 'wrist'\?"),
    ({"init_state_ids": 5}, r"init_state_ids=5; expected a sequence, such as init_state_ids=\(5,\)"),
    ({"init_state_ids": [1.5]}, r"init_state_ids\[0\]=1\.5; expected a whole number"),
    ({"init_state_ids": [True]}, r"init_state_ids\[0\]=True; expected a whole number"),
    ({"placement_seeds": [-1]}, r"placement_seeds\[0\]=-1 is out of range"),
    ({"placement_seeds": 3}, r"placement_seeds=3; expected a sequence"),
    ({"episodes_per_state": 0}, r"episodes_per_state=0 is out of range"),
    ({"policy": 3}, r"policy=3; expected a factory, or its name as 'module:function'"),
    ({"suite": "libero_spatail"}, r"Unknown suite 'libero_spatail'\. Did you mean 'libero_spatial'\?"),
    ({"task_ids": [99]}, r"task_id=99 is out of range"),
]


@pytest.mark.parametrize(("arguments", "message"), RECORD)
def test_a_wrong_argument_of_record_is_told(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "suite": "libero_spatial",
        "policy": "nowhere:make",
        "task_ids": 0,
        "init_state_ids": [0],
    }
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "dataset", **options | arguments)
    assert not (tmp_path / "dataset").exists()


WRITER: list[tuple[dict[str, Any], str]] = [
    ({"fps": 0}, r"fps=0 is out of range"),
    ({"fps": 20.0}, r"fps=20\.0; expected a whole number"),
    ({"crf": "good"}, r"crf='good'; expected a whole number"),
    ({"cameras": "image"}, r"cameras='image'; expected a sequence"),
    ({"cameras": ("a/../../../x",)}, r"cameras=\('a/../../../x',\); expected observation keys"),
    ({"cameras": ("image}",)}, r"cameras=\('image}',\); expected observation keys"),
    ({"cameras": ("",)}, r"cameras=\('',\); expected observation keys"),
    ({"cameras": (1,)}, r"cameras=\(1,\); expected observation keys"),
    ({"cameras": ("image", "image")}, r"each once, without '/' or braces"),
    ({"overwrite": "no"}, r"overwrite='no'; expected True or False"),
]


@pytest.mark.parametrize(("arguments", "message"), WRITER)
def test_a_wrong_argument_of_the_writer_is_told(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path, **{"cameras": ()} | arguments)


# ------------------------------------------------------------------------------------------------- finetune

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"task_ids": "3-1"}, r"--task-ids '3-1': '3-1' runs backwards"),
    ({"task_ids": "x"}, r"--task-ids 'x': 'x' is no id"),
    ({"task_ids": "10"}, r"--task-ids=10 is out of range; expected a whole number from 0 to 9\."),
    ({"init_states": "1,,2"}, r"--init-states '1,,2': '' is no id"),
    ({"init_states": ""}, r"nothing to record: give --init-states"),
    ({"evaluate_states": "-1"}, r"--evaluate-states '-1': '-1' is no id"),
    ({"fps": -1}, r"--fps=-1 is out of range"),
    ({"n_workers": -1}, r"--n-workers=-1 is out of range"),
    ({"grasp_radius": NAN}, r"--grasp-radius=nan; expected a number"),
    ({"batch_size": 0}, r"batch_size=0 is out of range"),
    ({"paraphrase": -0.5}, r"paraphrase=-0\.5 is out of range; expected a number from 0 to 1\."),
    ({"crop_area": 0.0}, r"crop_area=0\.0; expected more than 0"),
    ({"suite": "libero"}, r"Unknown suite 'libero'"),
    ({"demonstrations": "nowhere"}, r"--demonstrations 'nowhere' is no folder"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_a_wrong_option_of_fine_tuning_is_told_before_anything_begins(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.main(finetune.Options(out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_metrics_of_a_run_that_was_cut_off_are_replaced(tmp_path: Path) -> None:
    for step in (250, 500, 750, 500):
        progress.note_metrics(tmp_path / "metrics.jsonl", {"step": step, "train/loss": 1.0})
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [250, 500]
