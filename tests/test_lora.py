"""Adapters: which layers get them, and how they are folded into the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch as th

from vla_agent.lora import LoraSettings, add_lora, merge_lora
from vla_agent.openvla import OpenVLA


def adapted(**settings: object) -> OpenVLA:
    """The tiny model with adapters that do something."""
    model = OpenVLA.from_pretrained("tiny")
    add_lora(model, LoraSettings.from_dict({"r": 4, **settings}), model.unused_parameter_names())
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * th.randn(parameter.shape, generator=generator))
    return model


def scores(model: OpenVLA) -> th.Tensor:
    ids, mask = model.tokenize(["push the plate", "open the top drawer of the cabinet"])
    pixels = th.randn(2, 6, 112, 112, generator=th.Generator().manual_seed(1))
    actions = model.action_token_ids[th.arange(14).view(2, 7)]
    with th.no_grad():
        return model.score_actions(ids, mask, pixels, actions, bins_only=True).logits


def test_the_head_is_adapted_only_on_request() -> None:
    without, with_head = adapted(), adapted(lm_head=True)
    assert not any("lm_head.lora" in name for name, _ in without.named_parameters())
    assert any("lm_head.lora" in name for name, _ in with_head.named_parameters())
    assert not th.allclose(scores(without), scores(with_head), atol=1e-3)


def test_adapters_drop_nothing_out_of_a_model_in_evaluation_mode() -> None:
    model = adapted(dropout=0.5)
    assert not any(module.training for module in model.modules())
    assert th.equal(scores(model), scores(model))


def test_merged_weights_say_the_same_and_save_as_a_plain_checkpoint(tmp_path: Path) -> None:
    model = adapted(lm_head=True)
    expected = scores(model)
    assert not th.allclose(expected, scores(OpenVLA.from_pretrained("tiny")), atol=1e-2)
    merge_lora(model)
    th.testing.assert_close(scores(model), expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "merged")
    th.testing.assert_close(scores(OpenVLA.from_pretrained(tmp_path / "merged")), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(model)
