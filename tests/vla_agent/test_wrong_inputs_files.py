"""Checkpoint folders and scorers that are damaged or of another form: each is told in one clear sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from safetensors.torch import load_file, save_file

from vla_agent.openvla import OpenVLA
from vla_agent.openvla.files import SHIPPED_FOLDER, TINY_FOLDER, CheckpointError
from vla_agent.openvla.processor import load_processor
from vla_agent.process_reward import RewardModelError, load_reward_model

DEEP = b'{"a":' * 100_000 + b"}" * 100_000
SCORER_FOLDER = SHIPPED_FOLDER / "tiny-scorer"
STATS: dict[str, Any] = {"q01": [0.0] * 7, "q99": [1.0] * 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_FOLDER, tmp_path / "checkpoint"))


def change(path: Path, *keys: Any, value: Any) -> None:
    """Set what stands under the keys of a JSON file."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def told(error: pytest.ExceptionInfo[Exception], folder: Path) -> None:
    """The message is one line of bearable length, and says where."""
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000 + len(str(folder))


CONFIGS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "text_config null": (("text_config",), None, "text_config must be an object, got null"),
    "text_config a list": (("text_config",), [1], "text_config must be an object, got a list"),
    "ten million layers": (("text_config", "num_hidden_layers"), 10**7, "num_hidden_layers=10000000 is out of range"),
    "no layer": (("text_config", "num_hidden_layers"), 0, "num_hidden_layers=0 is out of range"),
    "layers a text": (("text_config", "num_hidden_layers"), "4", "num_hidden_layers='4'; expected a whole number"),
    "a huge vocabulary": (("text_config", "vocab_size"), 10**12, "vocab_size=1000000000000 is out of range"),
    "a huge width": (("text_config", "hidden_size"), 10**9, "hidden_size=1000000000 is out of range"),
    "no BOS": (("text_config", "bos_token_id"), None, "bos_token_id=None; expected a whole number"),
    "an attention of the hub": (("text_config", "_attn_implementation"), "a/b", "is no setting of a language model"),
    "norm_stats a list": (("norm_stats",), [1], "norm_stats must be an object, got a list"),
    "norm_stats of a number": (("norm_stats", "libero"), 3, "'libero' has a int"),
    "statistics without action": (("norm_stats", "libero"), {"proprio": STATS}, "has an object with 'proprio'"),
    "proprio a list": (("norm_stats", "libero", "proprio"), [1], "'proprio' must be an object"),
    "towers a text": (("timm_model_ids",), "vit", "timm_model_ids must be a list"),
    "towers of numbers": (("timm_model_ids",), [1, 2], "must name vision towers, got 1"),
    "a patch of nothing": (("timm_model_ids", 0), "vit_patch0_dinov2", "is out of range"),
    "image sizes of texts": (("image_sizes",), ["112", "112"], "image_sizes='112'; expected a whole number"),
    "huge images": (("image_sizes",), [14 * 10**9] * 2, "is out of range"),
    "tower sizes a number": (("vision_tower_sizes",), 5, "vision_tower_sizes must be a list"),
    "tower sizes of lists": (("vision_tower_sizes",), [[], []], "vision_tower_sizes must be an object"),
    "a million blocks": (("vision_tower_sizes", 0, "depth"), 10**6, "vision_tower_sizes depth=1000000 is out of range"),
    "no heads": (("vision_tower_sizes", 0, "num_heads"), 0, "num_heads=0 is out of range"),
    "a chunk of a fraction": (("action_chunk_size",), 1.5, "action_chunk_size=1.5; expected a whole number"),
    "an endless chunk": (("action_chunk_size",), 10**9, "out of range"),
    "a state of yes": (("use_state",), "yes", "use_state='yes'; expected True or False"),
    "padding a text": (("pad_to_multiple_of",), "64", "pad_to_multiple_of='64'; expected a whole number"),
    "nested 600 deep": (("extra",), json.loads("[" * 600 + "]" * 600), "nested more than 32 deep"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_wrong_field_of_the_config_is_told(folder: Path, what: str) -> None:
    keys, value, message = CONFIGS[what]
    change(folder / "config.json", *keys, value=value)
    with pytest.raises(CheckpointError, match=message) as error:
        load_processor(folder)
    assert str(folder) in str(error.value)
    told(error, folder)


JSON_FILES = ["config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"]
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda content: content[: len(content) // 2], "is damaged: it is no JSON"),
    "empty": (lambda content: b"", "is damaged: it is no JSON"),
    "a list": (lambda content: b"[]", "expected an object at its top, got list"),
    "null": (lambda content: b"null", "expected an object at its top, got NoneType"),
    "no text": (lambda content: b"\xff\xfe" + content, "is damaged"),
    "nested": (lambda content: DEEP, "nested too deeply"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_damaged_json_file_is_told(folder: Path, name: str, what: str) -> None:
    path = folder / name
    content = path.read_bytes() if path.exists() else json.dumps({"libero": {"action": STATS}}).encode()
    damage, message = DAMAGE[what]
    path.write_bytes(damage(content))
    with pytest.raises(CheckpointError, match=message) as error:
        load_processor(folder)
    assert name in str(error.value)
    told(error, folder)


FILES: dict[str, tuple[str, Any, str]] = {
    "statistics without action": (
        "dataset_statistics.json",
        {"mine": {"q01": [0.0]}},
        "an object with 'q01'",
    ),
    "statistics of a list": ("dataset_statistics.json", {"mine": [1]}, "'mine' has a list"),
    "means of one tower": ("preprocessor_config.json", {"means": [[0.5] * 3]}, "'means' and 'stds' of 2 vision towers"),
    "means a number": ("preprocessor_config.json", {"means": 3}, "'means' as three numbers"),
    "means of texts": ("preprocessor_config.json", {"means": [["a"] * 3] * 2}, "expected a number"),
    "deviations of 0": ("preprocessor_config.json", {"stds": [[0.0] * 3] * 2}, "the latter not 0"),
    "deviations not finite": ("preprocessor_config.json", {"stds": [[10**400] * 3] * 2}, "a number of 401 digits"),
    "no tokenizer": ("tokenizer.json", {"model": {"type": "BPE"}}, r"tokenizer\.json describes no tokenizer"),
}


@pytest.mark.parametrize("what", FILES)
def test_another_form_of_a_file_is_told(folder: Path, what: str) -> None:
    name, content, message = FILES[what]
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        load_processor(folder)
    told(error, folder)


def test_the_tokenizer_of_another_model_is_told(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["<more>"] = 1216
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="ids reach 1216, but the model has embeddings for 0 to 1215"):
        load_processor(folder)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({**STATS, "q01": ["a"] * 7}, "q01='a'; expected a number"),
        ({**STATS, "q01": [float("nan")] * 7}, "q01=nan; expected a number"),
        ({**STATS, "q99": [10**400] * 7}, "q99 is a number of 401 digits; expected a number"),
        ({**STATS, "q99": 1.0}, "q99 must be a list, got a float"),
        ({**STATS, "q99": [1.0] * 2000}, "q99 has 2000 numbers"),
        ({**STATS, "q99": [1.0] * 6}, "must be lists of equal length"),
        ({**STATS, "mask": ["no"] * 7}, "mask='no'; expected True or False"),
        ({"mean": [0.0] * 7}, "statistics lack q01, q99"),
    ],
)
def test_statistics_that_are_no_numbers_are_told_where_they_are_used(
    folder: Path, stats: dict[str, Any], message: str
) -> None:
    change(folder / "config.json", "norm_stats", value={"mine": {"action": stats}})
    with pytest.raises(ValueError, match=message):
        load_processor(folder).action_table()


INDICES: dict[str, tuple[bytes, str]] = {
    "no weight_map": (b'{"metadata": {}}', "expected 'weight_map', an object"),
    "weight_map a list": (b'{"weight_map": [1]}', "expected 'weight_map', an object"),
    "weight_map empty": (b'{"weight_map": {}}', "expected 'weight_map', an object"),
    "weight_map of numbers": (b'{"weight_map": {"a": 1}}', "expected 'weight_map', an object"),
    "a list": (b"[]", "expected an object at its top"),
    "cut": (b'{"weight_map": {"a": "model-', "it is no JSON"),
    "nested": (DEEP, "nested too deeply"),
    "outside": (b'{"weight_map": {"a": "../other/model.safetensors"}}', "files in its own folder"),
    "absolute": (b'{"weight_map": {"a": "/etc/model.safetensors"}}', "files in its own folder"),
    "a pickle": (b'{"weight_map": {"a": "pytorch_model.bin"}}', "expected safetensors files"),
    "absent": (b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}', "lacks the shards model-00001"),
}


@pytest.mark.parametrize("what", INDICES)
def test_a_wrong_index_is_told(folder: Path, what: str) -> None:
    content, message = INDICES[what]
    (folder / "model.safetensors.index.json").write_bytes(content)
    (folder.parent / "other").mkdir()
    shutil.copy(folder / "model.safetensors", folder.parent / "other")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=message) as error:
        OpenVLA.from_pretrained(folder)
    told(error, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or not a safetensors file"),
        (b"\xff" * 100, "damaged or not a safetensors file"),
        ((10**6).to_bytes(8, "little") + DEEP[: 10**6], "damaged or not a safetensors file"),
        (b"\x02" + b"\0" * 7 + b"{}", "are not those of the model its config.json describes"),
    ],
)
def test_damaged_weights_are_told(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        OpenVLA.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "none"), ("hidden_size", 130), ("rope_parameters", {"rope_type": "none"})]
)
def test_a_language_model_that_cannot_be_built_is_told(folder: Path, key: str, value: Any) -> None:
    change(folder / "config.json", "text_config", key, value=value)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        OpenVLA.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------ scorers


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SCORER_FOLDER, tmp_path / "scorer"))


SCORERS: dict[str, tuple[Any, str]] = {
    "a list": ([], "expected an object at its top"),
    "class a list": ({"class": []}, r"holds a \[\]; known are TinyScorer, VLMScorer"),
    "class unknown": ({"class": "Other"}, "holds a 'Other'; known are TinyScorer"),
    "no class": ({"class": None}, "holds a None; known are TinyScorer"),
    "an unknown field": ({"more": 1}, "incomplete or damaged"),
    "instructions a text": ({"instructions": "take"}, "expected a sequence"),
    "instructions of numbers": ({"instructions": [1]}, "instructions must be strings"),
    "image_size a text": ({"image_size": "112"}, "image_size='112'; expected a whole number"),
    "image_size huge": ({"image_size": 10**9}, "image_size=1000000000 is out of range"),
    "channels 0": ({"channels": []}, "1 to 12 stages"),
    "channels odd": ({"channels": [9]}, "multiples of 8"),
    "channels huge": ({"channels": [8 * 10**9]}, "out of range"),
    "widths that the file has not": ({"channels": [4096] * 8, "feature_dim": 65536}, "do not fit the model"),
    "camera a number": ({"camera": 3}, "camera=3; expected the name"),
}


@pytest.mark.parametrize("what", SCORERS)
def test_a_wrong_scorer_is_told(scorer: Path, what: str) -> None:
    change_, message = SCORERS[what]
    path = scorer / "scorer.json"
    content = json.loads(path.read_text()) | change_ if isinstance(change_, dict) else change_
    path.write_text(json.dumps(content))
    with pytest.raises(RewardModelError, match=message) as error:
        load_reward_model(scorer)
    told(error, scorer)


@pytest.mark.parametrize("content", [b"", b'{"class": ', b"\xff", DEEP])
def test_a_damaged_scorer_file_is_told(scorer: Path, content: bytes) -> None:
    (scorer / "scorer.json").write_bytes(content)
    with pytest.raises(RewardModelError, match=r"scorer\.json' is damaged"):
        load_reward_model(scorer)


def test_a_scorers_tensors_are_told(scorer: Path) -> None:
    tensors = load_file(scorer / "scorer.safetensors")
    save_file({**tensors, "more": th.zeros(1)}, scorer / "scorer.safetensors")
    with pytest.raises(RewardModelError, match="more differ"):
        load_reward_model(scorer)
    save_file({**tensors, "embedding": th.zeros(1)}, scorer / "scorer.safetensors")
    with pytest.raises(RewardModelError, match="embedding differ"):
        load_reward_model(scorer)
    (scorer / "scorer.safetensors").unlink()
    with pytest.raises(RewardModelError, match="incomplete or damaged"):
        load_reward_model(scorer)


VLM = {"class": "VLMScorer", "question": "{instruction}?", "camera": "image", "instructions": None, "lora": None}
VLMS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({}, "scorer.json lacks 'model'"),
    "model a list": ({"model": []}, "expected a folder or a hub id"),
    "a model beside": ({"model": "../other"}, "reaches outside the scorer's folder"),
    "a model of a user": ({"model": "~root/model"}, "reaches outside the scorer's folder"),
    "a model of the web": ({"model": "https://a.b/c"}, "no absolute path and no hub id"),
    "no model there": ({"model": "/none/there"}, "no vision-language model"),
    "question a number": ({"model": "a/b", "question": 3}, "question=3; expected a text with"),
    "question without": ({"model": "a/b", "question": "Done?"}, "expected a text with"),
    "question endless": ({"model": "a/b", "question": "{instruction:999999999}"}, "expected a text with"),
    "question of another": ({"model": "a/b", "question": "{task}"}, "expected a text with"),
    "camera null": ({"model": "a/b", "camera": None}, "expected the name of an observation"),
    "instructions of numbers": ({"model": "a/b", "instructions": [1]}, "instructions must be strings"),
    "lora a list": ({"model": "a/b", "lora": [1]}, "incomplete or damaged"),
    "lora of a rank": ({"model": "a/b", "lora": {"r": 10**9}}, "not of the rank"),
    "lora of no rank": ({"model": "a/b", "lora": {"r": 0}}, "lora r=0"),
}


@pytest.mark.parametrize("what", VLMS)
def test_a_wrong_vlm_scorer_is_told(tmp_path: Path, what: str) -> None:
    change_, message = VLMS[what]
    (tmp_path / "scorer.json").write_text(json.dumps(VLM | change_))
    save_file({}, tmp_path / "scorer.safetensors")
    with pytest.raises(RewardModelError, match=message) as error:
        load_reward_model(tmp_path)
    told(error, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "nested too deeply"),
        (b"[]", "expected an object at its top"),
        (
            b'{"text_config": {"num_hidden_layers": 10000000}}',
            "num_hidden_layers=10000000; no model has more",
        ),
        (b'{"text_config": {"_attn_implementation": "a/b"}}', "which is never run here"),
    ],
)
def test_a_wrong_config_of_a_vision_language_model_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(content)
    (tmp_path / "scorer.json").write_text(json.dumps(VLM | {"model": "model"}))
    save_file({}, tmp_path / "scorer.safetensors")
    with pytest.raises(RewardModelError, match=message):
        load_reward_model(tmp_path)
