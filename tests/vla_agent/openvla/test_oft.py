"""Published OpenVLA-OFT checkpoints: plain weights, and a state projector and action head in files of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from vla_agent.action_tokens import unnormalize
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.action_head import L1ActionHead
from vla_agent.openvla.decoders import ParallelDecoder
from vla_agent.openvla.files import TINY_FOLDER, CheckpointError, extra_files
from vla_agent.openvla.sequence import lay_out_prompts
from vla_agent.openvla.vision import StateProjector

PROPRIO = {"q01": [-1.0] * 8, "q99": [1.0] * 8, "mask": [True] * 8}


@pytest.fixture(scope="module")
def oft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as OFT's training leaves it: a plain config, and two more files, of two steps."""
    folder = tmp_path_factory.mktemp("oft")
    for path in TINY_FOLDER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for stats in config["norm_stats"].values():
        stats["proprio"] = PROPRIO
    (folder / "config.json").write_text(json.dumps(config))
    width = config["text_config"]["hidden_size"]
    th.manual_seed(0)
    for step in (50, 100):
        for name, module in (("proprio_projector", StateProjector(8, width)), ("action_head", L1ActionHead(width, 7))):
            state_dict = {f"module.{key}": value for key, value in module.state_dict().items()}
            th.save(state_dict, folder / f"{name}--{step}_checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def observation() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 2, 112, 112, 3), dtype=np.uint8)
    return {"images": images[0], "wrist_images": images[1], "state": rng.uniform(-1, 1, (2, 8))}


def naive_head(tensors: dict[str, th.Tensor], hidden: th.Tensor) -> th.Tensor:
    """The head of arXiv 2502.19645 written out: layer norm, linear, ReLU, two residual blocks, layer norm, linear."""

    def linear(x: th.Tensor, name: str) -> th.Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: th.Tensor, name: str) -> th.Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    x = linear(norm(hidden.reshape(len(hidden), 8, -1), "model.layer_norm1"), "model.fc1").clamp(min=0)
    for block in ("model.mlp_resnet_blocks.0", "model.mlp_resnet_blocks.1"):
        x = x + linear(norm(x, f"{block}.ffn.0"), f"{block}.ffn.1").clamp(min=0)
    return linear(norm(x, "model.layer_norm2"), "model.fc2")


def test_the_last_steps_files_are_read_and_described(oft: Path) -> None:
    assert extra_files(oft)["action_head"].name == "action_head--100_checkpoint.pt"
    config = OpenVLA.from_pretrained(oft).config
    assert (config.decoding, config.action_chunk_size, config.num_images) == ("parallel", 8, 2)
    assert config.use_state
    assert config.action_head == "l1"


def test_actions_are_those_of_the_naive_head(oft: Path, observation: dict[str, np.ndarray]) -> None:
    model = OpenVLA.from_pretrained(oft)
    texts = ["pick up the bowl", "open the top drawer of the cabinet"]
    actions = model.predict_action(
        observation["images"], texts, **{k: observation[k] for k in ("wrist_images", "state")}
    )
    pixels = model.preprocess(observation["images"], observation["wrist_images"])
    state = th.from_numpy(model.processor.normalize_state(observation["state"]))
    with th.no_grad():
        layout = lay_out_prompts(*model.tokenize(texts), model.config.empty_piece_id)
        prefix = model.embed_prefix(layout, pixels, state)
        tensors = th.load(oft / "action_head--100_checkpoint.pt", weights_only=True)
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        expected = naive_head(tensors, ParallelDecoder().hidden(model, layout, prefix))
    np.testing.assert_allclose(actions, unnormalize(expected.numpy(), model.processor.action_stats()), atol=1e-5)
    assert actions.shape == (2, 8, 7)


def test_saved_anew_everything_is_in_one_layout(oft: Path, tmp_path: Path, observation: dict[str, np.ndarray]) -> None:
    model = OpenVLA.from_pretrained(oft)
    model.save_pretrained(tmp_path / "converted")
    assert extra_files(tmp_path / "converted") == {}
    again = OpenVLA.from_pretrained(tmp_path / "converted")
    arguments = {"instructions": "push the plate", **observation}
    np.testing.assert_array_equal(model.predict_action(**arguments), again.predict_action(**arguments))


def test_what_is_saved_over_it_is_not_hidden_by_its_extra_files(oft: Path, tmp_path: Path) -> None:
    own = shutil.copytree(oft, tmp_path / "own")
    model = OpenVLA.from_pretrained(own)
    with th.no_grad():
        model.proprio_projector.fc1.weight.fill_(3.0)
    model.save_pretrained(own)
    assert extra_files(own)  # which nobody deletes
    assert OpenVLA.from_pretrained(own).proprio_projector.fc1.weight.unique().tolist() == [3.0]


def test_a_continuous_head_is_for_evaluation(oft: Path) -> None:
    model = OpenVLA.from_pretrained(oft)
    ids, mask = model.tokenize(["push the plate"])
    with pytest.raises(ValueError, match="can be evaluated with predict_action, but not sampled"):
        model.sample_actions(ids, mask, th.zeros(1, 12, 112, 112), state=th.zeros(1, 8))
    with pytest.raises(ValueError, match="no continuous action head"):
        OpenVLA.from_pretrained("tiny").regress_actions(ids, mask, th.zeros(1, 6, 112, 112))


def test_missing_tensors_of_the_extra_files_are_named(oft: Path, tmp_path: Path) -> None:
    for path in oft.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    th.save({"module.fc1.weight": th.zeros(3, 3)}, tmp_path / "proprio_projector--100_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"proprio_projector\.fc1\.bias"):
        OpenVLA.from_pretrained(tmp_path)
