"""Adapters: which layers get them, and how they are folded into the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch as th
from peft import LoraConfig
from peft.tuners import lora

from vla_agent.openvla import OpenVLA
from vla_agent.policy.adapted_linear import AdaptedLinear
from vla_agent.policy.lora import LoraSettings, add_lora, merge_lora


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
    actions = th.arange(14).view(2, 7)
    with th.no_grad():
        return model.score_actions(ids, mask, pixels, actions).logits


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


# --- What adapters compute in --------------------------------------------------------------------------------------


def layer_pair(dtype: th.dtype, dropout: float = 0.0) -> tuple[AdaptedLinear, lora.Linear]:
    """One layer of our kind and one of peft's, the same weights in both."""
    layers = []
    for kind in (AdaptedLinear, lora.Linear):
        th.manual_seed(0)
        base = th.nn.Linear(24, 40, dtype=dtype)
        layer = kind(base, "default", r=4, lora_alpha=2, config=LoraConfig(r=4, lora_alpha=2, lora_dropout=dropout))
        layer.requires_grad_(False)
        for half in (layer.lora_A, layer.lora_B):
            half.to(th.float32).requires_grad_(True)
            th.nn.init.normal_(half["default"].weight, std=0.3)
        layers.append(layer)
    return layers[0], layers[1]


def run(layer: lora.Linear, dtype: th.dtype) -> list[th.Tensor]:
    """The output, and the gradients of input and adapter."""
    x = th.randn(3, 5, 24, generator=th.Generator().manual_seed(1)).to(dtype).requires_grad_()
    th.manual_seed(2)  # of the dropout
    y = layer(x)
    (y.float() * th.linspace(-1, 1, 40)).sum().backward()
    gradients = [half["default"].weight.grad for half in (layer.lora_A, layer.lora_B)]
    assert x.grad is not None
    assert all(gradient is not None and gradient.dtype == th.float32 for gradient in gradients)
    return [y, x.grad, *gradients]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("dtype", "atol"), [(th.float32, 1e-5), (th.bfloat16, 0.06)])
def test_an_adapter_computes_what_pefts_does(dtype: th.dtype, atol: float, dropout: float) -> None:
    ours, theirs = layer_pair(dtype, dropout)
    assert (run(ours, dtype)[0] - theirs.base_layer(th.zeros(24, dtype=dtype))).abs().max() > 1
    for layer in (ours, theirs):
        layer.zero_grad()
    for mine, other in zip(run(ours, dtype), run(theirs, dtype), strict=True):
        scale = float(other.detach().abs().max())
        th.testing.assert_close(mine.float() / scale, other.float() / scale, atol=atol, rtol=0)
        assert mine.dtype == other.dtype


def test_no_float32_copies_of_inputs_are_kept_beside_a_bfloat16_layer() -> None:
    kept: dict[str, list[th.Tensor]] = {}
    for name, layer in zip(("ours", "peft"), layer_pair(th.bfloat16), strict=True):
        tensors = kept.setdefault(name, [])
        with th.autograd.graph.saved_tensors_hooks(lambda x, tensors=tensors: tensors.append(x) or x, lambda x: x):
            layer(th.ones(3, 5, 24, dtype=th.bfloat16, requires_grad=True))

    def count_copies(tensors: list[th.Tensor]) -> int:
        return sum(x.dtype == th.float32 and x.numel() == 3 * 5 * 24 for x in tensors)

    assert count_copies(kept["peft"]) > 0
    assert count_copies(kept["ours"]) == 0


def test_adapted_models_have_such_layers() -> None:
    layers = [module for module in adapted(lm_head=True).modules() if isinstance(module, lora.LoraLayer)]
    assert layers
    assert all(isinstance(layer, AdaptedLinear) for layer in layers)


def test_steps_too_small_for_bfloat16_add_up_in_an_adapter() -> None:
    layer, _ = layer_pair(th.bfloat16)
    weight = layer.lora_B["default"].weight
    with th.no_grad():
        weight.fill_(1.0)
    x = th.ones(1, 24, dtype=th.bfloat16)
    before = layer(x)
    for _ in range(100):
        with th.no_grad():
            weight.add_(1e-4)  # 1 + 1e-4 is 1 in bfloat16
    assert not th.equal(layer(x), before)
