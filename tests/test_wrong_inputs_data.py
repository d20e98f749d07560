"""Every wrong argument of recording, reading and fine-tuning is told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_sft import SIZE, demonstrations, episode, small_model

from vla_agent.action_chunks import ActionChunks
from vla_agent.openvla import OpenVLA
from vla_agent.sft import SFTSettings, SupervisedTrainer

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
