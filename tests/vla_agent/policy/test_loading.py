"""Models are found by what their config.json says they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, fake_env

from vla_agent import VLAPPO
from vla_agent.evaluation.policies import load_subject
from vla_agent.openvla import CheckpointError, OpenVLA, Processor
from vla_agent.openvla.files import TINY_FOLDER
from vla_agent.policy import BackboneLoader, load_backbone, load_processor, loading, register_backbone


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(loading, "_LOADERS", dict(loading._LOADERS))


def checkpoint(folder: Path, model_type: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_a_checkpoint_is_loaded_by_its_kind() -> None:
    model = load_backbone("tiny")
    assert isinstance(model, OpenVLA)
    assert isinstance(load_processor("tiny"), Processor)
    assert load_processor("tiny").fingerprint() == model.processor.fingerprint()


def test_type_and_device_reach_the_loader_and_a_model_alike() -> None:
    assert next(load_backbone("tiny", th.bfloat16).parameters()).dtype == th.bfloat16  # type: ignore[attr-defined]
    fake = FakeBackbone()
    assert load_backbone(fake, th.float64, "cpu") is fake
    assert fake.lm_head.weight.dtype == th.float64


@pytest.mark.usefixtures("known")
def test_a_registered_kind_trains_by_its_name(tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(name: Any, *, dtype: Any, device: Any) -> FakeBackbone:
        asked.append((name, dtype, device))
        return FakeBackbone().to(device=device, dtype=dtype)

    register_backbone("fake_vla", BackboneLoader(load, lambda name: FakeProcessor(str(name))))
    folder = str(checkpoint(tmp_path / "mine", "fake_vla"))
    assert load_processor(folder).fingerprint() == folder
    model = VLAPPO(
        "VLAPolicy", fake_env(), n_steps=4, batch_size=4, device="cpu", policy_kwargs={"model": folder}
    ).learn(8)
    assert isinstance(model.policy.backbone, FakeBackbone)
    assert [str(name) for name, _, _ in asked] == [folder]
    subject = load_subject(folder, "cpu")  # as Evaluator does
    assert isinstance(subject.model, FakeBackbone)
    assert (subject.name, subject.folder) == (folder, Path(folder))


@pytest.mark.parametrize("model_type", ["pi0_fast", ["openvla"], 3])
def test_an_unknown_kind_is_told_with_the_known_ones(tmp_path: Path, model_type: Any) -> None:
    folder = checkpoint(tmp_path / "other", model_type)
    for ask in (load_backbone, load_processor):
        with pytest.raises(CheckpointError, match=r"nobody registered.*openvla, prismatic.*register_backbone") as error:
            ask(folder)
        assert repr(model_type) in str(error.value)


def test_a_near_miss_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'openvla'"):
        load_processor(checkpoint(tmp_path / "other", "openvla2"))


def test_a_folder_without_its_kind_is_openvlas(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / "old"))
    content = json.loads((folder / "config.json").read_text())
    del content["model_type"]
    (folder / "config.json").write_text(json.dumps(content))
    assert isinstance(load_backbone(folder), OpenVLA)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged: it is no JSON"):
        load_backbone(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_processor(folder)


def test_only_loaders_are_registered() -> None:
    with pytest.raises(TypeError, match="Expected a model_type and a BackboneLoader"):
        register_backbone("mine", FakeBackbone)  # type: ignore[arg-type]
