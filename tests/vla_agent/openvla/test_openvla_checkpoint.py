"""Checkpoints against the published layout: strict loading, round trips, and folders that lack something."""

import errno
import gzip
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch as th
from openvla_models import prompts
from paths import TESTS
from safetensors.torch import load_file, save_file

from vla_agent.openvla import CheckpointError, OpenVLA, OpenVLAConfig, load_processor
from vla_agent.openvla.files import SHIPPED_FOLDER, TINY_FOLDER
from vla_agent.openvla.network import OpenVLANetwork
from vla_agent.openvla.processor import Processor
from vla_agent.openvla.published import published_fields
from vla_agent.openvla.tiny import tiny_config, write_tiny
from vla_agent.openvla.weights import _check_memory, load_module


def test_names_and_shapes_are_those_of_the_published_7b():
    path = TESTS / "data" / "openvla_7b_tensors.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    config = OpenVLAConfig(
        timm_model_ids=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        image_sizes=[224, 224],
        text_config={"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    )
    with th.device("meta"):
        model = OpenVLA(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    assert config.llama.rms_norm_eps == 1e-6
    assert config.llama.max_position_embeddings == 2048
    assert model.action_token_ids[[0, 255]].device.type == "meta"
    assert config.vocab_size == 32000


def test_tiny_recipe_is_reproducible(tmp_path):
    write_tiny(tmp_path / "again")
    for path in TINY_FOLDER.iterdir():
        if path.name != "model.safetensors":  # training may have moved the shipped weights
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    write_tiny(tmp_path / "third")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "third"))
    assert first == second
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) < 12e6


def test_a_prompt_is_cut_into_tokens_once():
    asked = []
    processor = Processor(tiny_config(), lambda text: [1, len(asked.append(text) or asked)])
    first, again = (processor.tokenize(["open it", "close it", "open it"])[0] for _ in range(2))
    assert first.tolist() == again.tolist() == [[1, 1], [1, 2], [1, 1]]
    assert len(asked) == 2


def test_initial_action_distribution_is_broad(tmp_path, batch):
    write_tiny(tmp_path / "fresh")
    sample = OpenVLA.from_pretrained(tmp_path / "fresh").sample_actions(*prompts(batch))
    log_probs = sample.logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert entropy.min() > 0.95 * math.log(256)


@pytest.mark.parametrize("max_shard_size", [10**9, 10**6], ids=["single", "sharded"])
def test_save_and_load_round_trip_is_bit_equal(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    loaded = OpenVLA.from_pretrained(tmp_path / "saved")
    state = loaded.state_dict()
    assert all(th.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert loaded.config.to_dict() == model.config.to_dict()
    assert loaded.processor.files == model.processor.files
    assert not list(tmp_path.glob(".saved*")), "temporary folders must be gone"
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    if max_shard_size == 10**9:
        assert shards == ["model.safetensors"]
    else:
        assert len(shards) > 5
        index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(state)
        assert set(index["weight_map"].values()) == set(shards)


def test_saving_over_a_checkpoint_leaves_no_stale_shards_and_keeps_foreign_files(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path / "run", max_shard_size=10**6)
    model.save_pretrained(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {name for name in names if "model" in name} == {"model.safetensors"}
    assert "notes.txt" in names
    OpenVLA.from_pretrained(tmp_path / "run")


def test_published_config_survives_a_round_trip():
    published = {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {"libero_spatial": {"action": {"q01": [0.0], "q99": [1.0]}, "num_transitions": 3}},
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
    }
    assert OpenVLAConfig.from_dict(published).to_dict() == published


# Ids of the tables in OpenVLA's configuration_prismatic.py, which its PrismaticConfig looks up and refuses others of.
PUBLISHED_TOWERS = {
    "dinosiglip-vit-so-224px": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "dinosiglip-vit-so-384px": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"],
    "dinov2-vit-l": ["vit_large_patch14_reg4_dinov2.lvd142m"],
    "siglip-vit-so400m": ["vit_so400m_patch14_siglip_224"],
    "siglip-vit-so400m-384px": ["vit_so400m_patch14_siglip_384"],
}
PUBLISHED_LLAMAS = {"llama2-7b-pure", "llama2-13b-pure", "llama2-7b-chat", "vicuna-v15-7b", "vicuna-v15-13b"}


@pytest.mark.parametrize("name", ["tiny", "tiny-libero", "saved"])
def test_config_names_what_openvlas_own_code_looks_up(tmp_path, name):
    folder = SHIPPED_FOLDER / name
    if name == "saved":  # as from a checkpoint that this project made before it wrote them
        folder, model = tmp_path, OpenVLA.from_pretrained("tiny")
        model.config.extra.clear()
        model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert PUBLISHED_TOWERS[config["vision_backbone_id"]] == config["timm_model_ids"]
    assert config["llm_backbone_id"] in PUBLISHED_LLAMAS
    assert config["arch_specifier"] == "no-align+fused-gelu-mlp"
    assert config["image_resize_strategy"] == "resize-naive"
    assert config["timm_override_act_layers"] == [None, None]
    assert config["llm_max_length"] == config["text_config"]["max_position_embeddings"]


@pytest.mark.parametrize("towers", PUBLISHED_TOWERS)
def test_published_towers_are_found_by_their_names(towers):
    ids = PUBLISHED_TOWERS[towers]
    size = 384 if "384" in towers else 224
    sizes = [{"embed_dim": 96, "depth": 4, "num_heads": 3}] * len(ids)
    change = {"timm_model_ids": ids, "image_sizes": [size // 14 * 14] * len(ids), "vision_tower_sizes": sizes}
    config = OpenVLAConfig.from_dict({**tiny_config().to_dict(), **change, "use_fused_vision_backbone": len(ids) > 1})
    assert published_fields(config)["vision_backbone_id"] == towers


def test_fields_that_a_checkpoint_has_are_kept(tmp_path):
    model = OpenVLA.from_pretrained("tiny")
    model.config.extra["llm_backbone_id"] = "vicuna-v15-7b"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["llm_backbone_id"] == "vicuna-v15-7b"


def test_dataset_statistics_replace_those_of_the_config(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "tuned")
    statistics = {"mine": {"action": {"q01": [0.0] * 7, "q99": [2.0] * 7}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    assert load_processor(folder).unnorm_keys == ["mine"]
    OpenVLA.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert load_processor(tmp_path / "saved").unnorm_keys == ["mine"]


def test_statistics_that_a_model_was_given_since_are_saved(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "tuned")
    statistics = {"mine": {"action": {"q01": [0.0] * 7, "q99": [2.0] * 7}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    model = OpenVLA.from_pretrained(folder)
    model.config.norm_stats = {"taught": {"action": {"q01": [0.0] * 7, "q99": [0.5] * 7}}}
    for target in (tmp_path / "saved", folder):
        model.save_pretrained(target)
        for read in (load_processor(target), OpenVLA.from_pretrained(target).processor):
            assert read.unnorm_keys == ["taught"]
            assert read.action_stats(None)["q99"] == [0.5] * 7


def test_a_prompt_belongs_to_the_checkpoint_and_not_to_its_folder(tmp_path):
    plain, old = load_processor("tiny").prompt, "USER: What action should the robot take to"
    (tmp_path / "run_v01").mkdir()
    inside = shutil.copytree(TINY_FOLDER, tmp_path / "run_v01" / "tiny")
    assert load_processor(inside).prompt == plain
    published = shutil.copytree(TINY_FOLDER, tmp_path / "openvla-v01-7b")
    model = OpenVLA.from_pretrained(published)
    assert old in model.processor.prompt
    model.save_pretrained(tmp_path / "saved")
    assert load_processor(tmp_path / "saved").prompt == model.processor.prompt
    OpenVLA.from_pretrained(inside).save_pretrained(tmp_path / "mine-v01")
    assert load_processor(tmp_path / "mine-v01").prompt == plain
    with pytest.raises(ValueError, match="prompt_style is 'v2'"):
        OpenVLAConfig.from_dict({**tiny_config().to_dict(), "prompt_style": "v2"})


@pytest.mark.parametrize("number", range(0, 9, 2))  # of the files that are moved away, and then put in their place
def test_an_interruption_while_a_checkpoint_is_replaced_leaves_the_old_one(model, tmp_path, monkeypatch, number):
    OpenVLA.from_pretrained("tiny").save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    moves, replace = [], os.replace

    def interrupted(source, target):
        if str(tmp_path / "run") in (str(Path(source).parent), str(Path(target).parent)):
            moves.append(target)
            if len(moves) == number + 1:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(tmp_path / "run", max_shard_size=10**6)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_loading_is_strict_and_lists_the_tensors(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["projector.fc1.bias"]
    tensors["projector.fc9.bias"] = th.zeros(3)
    tensors["projector.fc3.bias"] = th.zeros(5)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        OpenVLA.from_pretrained(folder)
    assert "1 missing: projector.fc1.bias" in str(error.value)
    assert "1 unexpected: projector.fc9.bias" in str(error.value)
    assert "1 of another shape: projector.fc3.bias (5,) instead of (128,)" in str(error.value)


def test_a_gpu_too_small_for_the_weights_is_told_before_loading(monkeypatch):
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (int(1.5e9), int(24e9)))
    shapes, gpu = {"weight": (1000, 500_000), "bias": (1000,)}, th.device("cuda")
    with pytest.raises(CheckpointError, match=r"take 2\.0 GB in float32, but 1\.5 of the GPU's 24\.0 GB"):
        _check_memory(shapes, th.float32, gpu)
    _check_memory(shapes, th.bfloat16, gpu)
    _check_memory(shapes, th.float32, th.device("cpu"))


def test_mlp_width_that_the_config_leaves_out_is_read_from_the_weights(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "terse")
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_tower_sizes"][1].pop("mlp_dim") == 320
    (folder / "config.json").write_text(json.dumps(config))
    assert OpenVLA.from_pretrained(folder).config.towers[1].mlp_dim == 320


def test_tokenizer_model_alone_asks_for_sentencepiece(tmp_path, monkeypatch):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "pieces")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        load_processor(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected tokenizer\.json or tokenizer\.model"):
        load_processor(folder)


def test_folders_without_usable_weights_say_what_they_lack(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: expected model.safetensors, or shards with"):
        OpenVLA.from_pretrained(folder)
    assert load_processor(folder).image_size == 112, "the processor needs no weights"
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\), which are never loaded"):
        OpenVLA.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        OpenVLA.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="model_type is 'gpt2', but 'openvla' is needed"):
        OpenVLA.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_processor(folder)


def test_any_module_of_the_same_names_is_filled(model):
    network = load_module(lambda config, processor: OpenVLANetwork(config), "tiny", dtype=None, device=None)
    whole = OpenVLA.from_pretrained("tiny").state_dict()
    assert not isinstance(network, OpenVLA)
    assert network.state_dict().keys() == whole.keys()
    assert all(th.equal(tensor, whole[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(CheckpointError, match=r"missing: bias, weight.*unexpected: "):
        load_module(lambda config, processor: th.nn.Linear(2, 2), "tiny", dtype=None, device=None)


def test_index_with_absent_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", max_shard_size=10**6)
    shard = min((tmp_path / "saved").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks the shards {shard.name} of its index"):
        OpenVLA.from_pretrained(tmp_path / "saved")


def test_unknown_names_are_told_in_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint folder 'tinny'"):
        OpenVLA.from_pretrained("tinny")
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        load_processor(tmp_path / "absent")

    import huggingface_hub

    def offline(repo_id: str, **kwargs: object) -> str:
        assert not any("bin" in pattern or "pt" in pattern for pattern in kwargs["allow_patterns"])
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"'openvla/none' is neither a folder here nor .* \(ConnectionError\)"):
        OpenVLA.from_pretrained("openvla/none")

    def full(repo_id: str, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/home/me/.cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(CheckpointError, match=r"could not be downloaded from the hub: .*No space left on device"):
        OpenVLA.from_pretrained("openvla/none")
