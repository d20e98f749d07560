"""What the model computes in: float32 weights under bfloat16 passes, and what stays float32 in a bfloat16 model."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch as th
from openvla_models import make_batch, make_parallel, perturbed_tiny, prompts
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vla_agent.algorithms.health import ratio_tolerance
from vla_agent.bins import GREEDY, bin_log_probs
from vla_agent.openvla import OpenVLA
from vla_agent.policy import precision
from vla_agent.policy.lora import LoraSettings, add_lora
from vla_agent.policy.precision import choose_types


@pytest.fixture
def model() -> OpenVLA:
    return perturbed_tiny()


@pytest.fixture
def batch(model: OpenVLA) -> dict[str, th.Tensor]:
    return make_batch(model)


def score(model: OpenVLA, batch: dict[str, th.Tensor]) -> th.Tensor:
    return model.score_actions(**batch).logits


# --- autocast -----------------------------------------------------------------------------------------------------


def test_autocast_rounds_as_a_bfloat16_model_does(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    exact = score(model, batch)
    coarse = score(copy.deepcopy(model).to(th.bfloat16), batch)
    model.set_autocast(th.bfloat16)
    rounded = score(model, batch)
    error, same = (rounded - exact).abs().max(), (coarse - exact).abs().max()
    assert 1e-3 < error < 2 * same, "of the size that bfloat16 explains, and not nothing"
    model.set_autocast(None)
    assert th.equal(score(model, batch), exact)


def test_gradients_and_weights_stay_float32_under_autocast(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    unused = set(model.unused_parameter_names())
    gradients = []
    for dtype in (None, th.bfloat16):
        model.set_autocast(dtype)
        model.zero_grad()
        bin_log_probs(score(model, batch))[..., 7].sum().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if name not in unused}
        gradients.append(found)
    for name, exact in gradients[0].items():
        rounded = gradients[1][name]
        if exact is None:  # embeddings of other words, say
            assert rounded is None
            continue
        assert rounded is not None
        assert rounded.dtype == th.float32
        assert th.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), 0) > 0.98, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sampling_and_scoring_agree_under_autocast(
    model: OpenVLA, batch: dict[str, th.Tensor], checkpointing: bool
) -> None:
    model.set_autocast(th.bfloat16)
    model.set_gradient_checkpointing(checkpointing)
    sample = model.sample_actions(*prompts(batch), generator=th.Generator().manual_seed(0))
    logits = score(model, batch | {"bins": sample.bins})
    assert logits.dtype == sample.logits.dtype == th.float32
    difference = (bin_log_probs(logits) - bin_log_probs(sample.logits)).abs().mean()
    assert difference < 0.1 * ratio_tolerance(th.bfloat16)


def test_parallel_decoding_under_autocast(tmp_path: object) -> None:
    model, inputs = make_parallel(tmp_path)  # type: ignore[arg-type]
    exact = model.sample_actions(**inputs, sampling=GREEDY).logits
    model.set_autocast(th.bfloat16)
    rounded = model.sample_actions(**inputs, sampling=GREEDY).logits
    assert 1e-3 < (rounded - exact).abs().max() < 0.5


def test_autocast_needs_float32_weights(model: OpenVLA) -> None:
    with pytest.raises(ValueError, match=r"over float32 weights; got torch.float16 over torch.float32"):
        model.set_autocast(th.float16)
    with pytest.raises(ValueError, match=r"got torch.bfloat16 over torch.bfloat16"):
        model.to(th.bfloat16).set_autocast(th.bfloat16)


def test_what_is_trained_decides_the_types() -> None:
    def chosen(dtype: str | None, autocast: str | None, device: str | None, trains_all: bool) -> tuple:
        return choose_types("openvla/openvla-7b", dtype, autocast, device, trains_all=trains_all)

    assert chosen(None, "auto", "cuda:0", True) == (th.float32, th.bfloat16)
    assert chosen(None, "auto", "cuda:0", False) == (None, None)  # bfloat16, as checkpoints load on a GPU
    assert chosen(None, "auto", "cpu", True) == chosen(None, "auto", None, True) == (None, None)
    assert chosen("bfloat16", "auto", "cuda", True) == (th.bfloat16, None)
    assert chosen(None, None, "cuda", True) == (th.float32, None)
    assert chosen(None, None, "cuda", False) == (None, None)
    assert chosen(None, "bfloat16", "cpu", True) == (th.float32, th.bfloat16)
    with pytest.raises(ValueError, match="Unknown autocast 'bf15'"):
        chosen(None, "bf15", "cpu", True)


def test_a_model_keeps_the_type_it_has(model: OpenVLA) -> None:
    assert choose_types(model, None, "auto", "cuda", trains_all=True) == (None, None)


# --- What stays float32 in a bfloat16 model -------------------------------------------------------------------------


def test_scores_of_bins_are_not_rounded(model: OpenVLA) -> None:
    hidden = th.randn(500, model.hidden_size, generator=th.Generator().manual_seed(0))
    exact = model.bin_logits(hidden)
    model.to(th.bfloat16)
    whole = model.language_model.lm_head(hidden.bfloat16())[..., model.action_token_ids]
    logits = model.bin_logits(hidden.bfloat16())
    assert logits.dtype == th.float32
    assert (logits - exact).abs().max() < 0.1

    def share_of_ties(scores: th.Tensor) -> float:
        return float(((scores == scores.max(-1, keepdim=True).values).sum(-1) > 1).float().mean())

    assert share_of_ties(whole) > 0, "rounded scores leave the choice to the order of the bins"
    assert share_of_ties(logits) == 0
    with th.autocast("cpu", th.bfloat16):
        assert th.equal(model.bin_logits(hidden.bfloat16()), logits)


def test_bins_keep_float64(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    assert score(model.double(), batch).dtype == th.float64


def test_norms_are_transformers_in_float32(model: OpenVLA) -> None:
    ours = model.language_model.model.norm
    theirs = LlamaRMSNorm(model.hidden_size, model.language_model.config.rms_norm_eps)
    theirs.load_state_dict(ours.state_dict())
    x = th.from_numpy(np.random.default_rng(0).normal(0, 3, (7, model.hidden_size)).astype(np.float32))
    th.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert not any(isinstance(module, LlamaRMSNorm) for module in model.modules())


def test_an_adapted_head_scores_bins_too(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    add_lora(model, LoraSettings(r=2, lm_head=True), model.unused_parameter_names())
    assert score(model.to(th.bfloat16), batch).dtype == th.float32


def test_bfloat16_is_warned_of_where_it_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    with pytest.warns(
        UserWarning, match=r"no products of bfloat16, so autocast='bfloat16' takes several times as long"
    ):
        assert choose_types("tiny", None, "bfloat16", "cpu", trains_all=True) == (th.float32, th.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_types("tiny", None, "auto", "cpu", trains_all=True)
        choose_types("tiny", None, "bfloat16", "cuda", trains_all=True)
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
        choose_types("tiny", None, "bfloat16", "cpu", trains_all=True)
