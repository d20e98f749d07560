"""Recorded decoding is the decoding that it recorded, and is never used where that would not be so.

Every test of `decoder` runs with real CUDA graphs on a GPU, too.
"""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from openvla_models import make_batch, make_parallel, perturbed_tiny, prompts
from tape import Tape

from vla_agent.bins import GREEDY, PLAIN, Sampling
from vla_agent.openvla import ActionSample, OpenVLA
from vla_agent.openvla.action_head import L1ActionHead
from vla_agent.openvla.cuda_graphs import CudaGraph, GraphCache
from vla_agent.openvla.decoders import RegressionDecoder
from vla_agent.policy.lora import LoraSettings, add_lora, disable_adapter, merge_lora

Prompts = tuple[th.Tensor, th.Tensor, th.Tensor]
needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
BACKENDS = [
    pytest.param((Tape, "cpu"), id="tape"),
    pytest.param((CudaGraph, "cuda"), id="cuda", marks=[pytest.mark.gpu, needs_gpu]),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> tuple[Any, str]:
    return request.param


@pytest.fixture
def decoder(backend: tuple[Any, str]) -> OpenVLA:
    """A tiny model that records from the second batch of a kind on."""
    record, device = backend
    model = perturbed_tiny().to(device)
    model.graphs = GraphCache(record)
    return model


@pytest.fixture
def inputs(decoder: OpenVLA) -> Prompts:
    """Three prompts of different lengths."""
    return tuple(x.to(decoder.device) for x in prompts(make_batch(decoder)))


def rows(inputs: Prompts, *chosen: int) -> Prompts:
    """Some rows of a batch, without the padding that none of them needs."""
    ids, mask, pixels = (x[list(chosen)] for x in inputs)
    length = int(mask.sum(1).max())
    return ids[:, :length], mask[:, :length], pixels


def generator(model: OpenVLA, seed: int) -> th.Generator:
    return th.Generator(model.device).manual_seed(seed)


def eager(model: OpenVLA) -> OpenVLA:
    """A copy that records nothing."""
    twin = copy.deepcopy(model)
    twin.set_cuda_graphs(False)
    return twin


def assert_equal(got: ActionSample, expected: ActionSample) -> None:
    assert th.equal(got.bins, expected.bins)
    th.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-6)  # bit-equal on a CPU
    th.testing.assert_close(got.hidden, expected.hidden, rtol=0, atol=1e-6)


def assert_decodes_as_eagerly(model: OpenVLA, inputs: Prompts, times: int = 3, sampling: Sampling = PLAIN) -> None:
    """Compares so many calls, each with another seed, so that the second of a kind and later ones are replays."""
    twin = eager(model)
    for seed in range(times):
        got = model.sample_actions(*inputs, generator=generator(model, seed), sampling=sampling)
        expected = twin.sample_actions(*inputs, generator=generator(model, seed), sampling=sampling)
        assert_equal(got, expected)


# --- Replays are what they recorded -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [PLAIN, GREEDY, Sampling(temperature=1.7, top_k=40, top_p=0.9)],
    ids=["sampled", "greedy", "truncated"],
)
def test_replays_equal_eager_decoding(decoder: OpenVLA, inputs: Prompts, sampling: Sampling) -> None:
    assert_decodes_as_eagerly(decoder, inputs, sampling=sampling)
    assert len(decoder.graphs) == 1


@pytest.mark.parametrize("greedy_first", [False, True])
def test_candidates_replay_by_their_number(decoder: OpenVLA, inputs: Prompts, greedy_first: bool) -> None:
    twin = eager(decoder)
    for seed in range(3):
        for n_samples in (1, 2, 3):
            settings: dict[str, Any] = {"n_samples": n_samples, "greedy_first": greedy_first}
            got = decoder.sample_candidates(*inputs, **settings, generator=generator(decoder, seed))
            expected = twin.sample_candidates(*inputs, **settings, generator=generator(twin, seed))
            assert_equal(ActionSample(*got), ActionSample(*expected))
    assert len(decoder.graphs) == 3


@pytest.mark.parametrize("max_graphs", [8, 2])
def test_batches_of_different_shapes_replay_in_any_order(
    backend: tuple[Any, str], decoder: OpenVLA, inputs: Prompts, max_graphs: int
) -> None:
    decoder.graphs = GraphCache(backend[0], max_graphs)
    twin = eager(decoder)
    batches = [rows(inputs, *chosen) for chosen in ([0, 1, 2], [0], [1], [1, 1], [2, 1], [0, 1, 2])]
    for round_ in range(3):
        for i in np.random.default_rng(round_).permutation(len(batches)):
            seed = 10 * round_ + int(i)
            got = decoder.sample_actions(*batches[i], generator=generator(decoder, seed))
            assert_equal(got, twin.sample_actions(*batches[i], generator=generator(twin, seed)))
    assert len(decoder.graphs) == min(5, max_graphs)  # the last batch is the first one


def test_every_batch_is_read_anew(decoder: OpenVLA, inputs: Prompts) -> None:
    twin = eager(decoder)
    ids, mask, pixels = rows(inputs, 0, 1, 2)
    for seed in range(4):
        noise = th.randn(pixels.shape, generator=generator(decoder, seed), device=pixels.device)
        words = th.where(mask.bool() & (ids > 3), ids.roll(seed, 0), ids)
        got = decoder.sample_actions(words, mask, pixels + noise, sampling=GREEDY)
        assert_equal(got, twin.sample_actions(words, mask, pixels + noise, sampling=GREEDY))


def test_what_was_returned_stays_as_it_was(decoder: OpenVLA, inputs: Prompts) -> None:
    samples = [decoder.sample_actions(*inputs, generator=generator(decoder, 0)) for _ in range(3)]
    kept = [x.clone() for x in samples[2]]
    decoder.sample_actions(inputs[0], inputs[1], -inputs[2], generator=generator(decoder, 1))
    assert all(th.equal(x, y) for x, y in zip(samples[2], kept, strict=True))


def test_the_global_seed_decides_as_in_eager_decoding(decoder: OpenVLA, inputs: Prompts) -> None:
    twin = eager(decoder)
    draws = []
    for model in (decoder, twin):
        th.manual_seed(5)
        draws.append([model.generate_actions(*inputs) for _ in range(4)])
    assert all(th.equal(x, y) for x, y in zip(*draws, strict=True))
    assert not th.equal(draws[0][2], draws[0][3])


@pytest.mark.parametrize("continuous", [False, True], ids=["tokens", "l1"])
def test_parallel_decoding_is_recorded_too(backend: tuple[Any, str], tmp_path: Any, continuous: bool) -> None:
    model, batch = make_parallel(tmp_path)
    if continuous:
        model.action_head, model.decoder = L1ActionHead(model.hidden_size, 7), RegressionDecoder()
    model.to(backend[1])
    model.graphs = GraphCache(backend[0])
    twin = eager(model)
    batch = {name: x.to(model.device) for name, x in batch.items()}
    for seed in range(3):
        batch["state"] = batch["state"] * 0.9
        if continuous:
            th.testing.assert_close(model.regress_actions(**batch), twin.regress_actions(**batch), rtol=0, atol=1e-6)
        else:
            got = model.sample_actions(**batch, generator=generator(model, seed))
            assert_equal(got, twin.sample_actions(**batch, generator=generator(twin, seed)))
    assert len(model.graphs) == 1


# --- Weights and modes --------------------------------------------------------------------------------------------


def test_optimizer_steps_show_in_replays(decoder: OpenVLA, inputs: Prompts) -> None:
    optimizer = th.optim.Adam(decoder.parameters(), lr=1e-3)
    before = [decoder.sample_actions(*inputs, sampling=GREEDY).logits for _ in range(2)][1]
    for _ in range(2):
        bins = th.zeros(3, 7, dtype=th.int64, device=decoder.device)
        decoder.score_actions(*inputs, bins).logits[..., 0].sum().backward()
        optimizer.step()
        assert_decodes_as_eagerly(decoder, inputs, times=1, sampling=GREEDY)
    assert len(decoder.graphs) == 1
    assert (decoder.sample_actions(*inputs, sampling=GREEDY).logits - before).abs().max() > 0.1


def test_adapters_on_off_rescaled_and_merged(decoder: OpenVLA, inputs: Prompts) -> None:
    plain = decoder.sample_actions(*inputs, sampling=GREEDY).logits
    add_lora(decoder, LoraSettings(r=4, dropout=0.5), decoder.unused_parameter_names())
    with th.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    for _ in range(2):
        assert_decodes_as_eagerly(decoder, inputs, sampling=GREEDY)
        with disable_adapter(decoder):
            for _ in range(3):
                logits = decoder.sample_actions(*inputs, sampling=GREEDY).logits
                th.testing.assert_close(logits, plain, rtol=0, atol=1e-6)
    assert len(decoder.graphs) == 2, "with and without adapters, each has a graph"
    for module in decoder.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3.0)
    assert_decodes_as_eagerly(decoder, inputs, sampling=GREEDY)
    assert len(decoder.graphs) == 3
    merge_lora(decoder)
    assert_decodes_as_eagerly(decoder, inputs, sampling=GREEDY)
    assert len(decoder.graphs) == 1


def shift(tensor: th.Tensor) -> th.Tensor:
    return tensor + 0.05


def assign_state(model: OpenVLA) -> None:
    model.load_state_dict({name: shift(tensor) for name, tensor in model.state_dict().items()}, assign=True)


def replace_data(model: OpenVLA) -> None:
    weight = model.language_model.model.layers[1].mlp.up_proj.weight
    weight.data = shift(weight.data)


def replace_module(model: OpenVLA) -> None:
    model.projector.fc2 = th.nn.Sequential(model.projector.fc2, th.nn.Tanh())


def remove_bias(model: OpenVLA) -> None:
    model.projector.fc1.bias = None


def append_block(model: OpenVLA) -> None:
    blocks = model.vision_backbone.featurizer.blocks
    blocks.append(blocks[-1])  # the last one is left out, so one more counts now


CHANGES = [assign_state, replace_data, replace_module, remove_bias, append_block, OpenVLA.half, OpenVLA.double]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_put_elsewhere_and_changed_layers_drop_all_graphs(
    decoder: OpenVLA, inputs: Prompts, change: Callable[[OpenVLA], Any]
) -> None:
    before = [decoder.sample_actions(*inputs, sampling=GREEDY).logits for _ in range(2)][1]
    decoder.sample_actions(*rows(inputs, 0), sampling=GREEDY)
    decoder.sample_actions(*rows(inputs, 0), sampling=GREEDY)
    assert len(decoder.graphs) == 2
    change(decoder)
    after = decoder.sample_actions(*inputs, sampling=GREEDY).logits
    assert len(decoder.graphs) == 0
    assert not th.equal(after, before)
    assert_decodes_as_eagerly(decoder, inputs, sampling=GREEDY)


def test_training_mode_and_gradient_checkpointing_make_no_difference(decoder: OpenVLA, inputs: Prompts) -> None:
    expected = [decoder.sample_actions(*inputs, sampling=GREEDY) for _ in range(2)][1]
    decoder.train()
    decoder.set_gradient_checkpointing(True)
    assert_equal(decoder.sample_actions(*inputs, sampling=GREEDY), expected)
    assert decoder.language_model.training
    assert len(decoder.graphs) == 1


def test_hooks_are_called(decoder: OpenVLA, inputs: Prompts) -> None:
    for _ in range(2):
        decoder.sample_actions(*inputs, sampling=GREEDY)
    calls = []
    hook = decoder.projector.register_forward_hook(lambda *args: calls.append(1))
    for _ in range(3):
        decoder.sample_actions(*inputs, sampling=GREEDY)
    assert len(calls) == 3
    hook.remove()
    decoder.sample_actions(*inputs, sampling=GREEDY)
    assert len(calls) == 3


def test_autocast_decodes_eagerly(decoder: OpenVLA, inputs: Prompts) -> None:
    with th.autocast(decoder.device.type, dtype=th.bfloat16):
        assert_decodes_as_eagerly(decoder, inputs, sampling=GREEDY)
    assert len(decoder.graphs) == 0


def test_the_models_own_autocast_is_recorded_and_sees_steps(decoder: OpenVLA, inputs: Prompts) -> None:
    def first_logits() -> th.Tensor:  # those of later tokens depend on the tokens before
        return decoder.sample_actions(*inputs, sampling=GREEDY).logits[:, 0]

    exact = first_logits()
    decoder.set_autocast(th.bfloat16)
    for step in range(4):
        assert_decodes_as_eagerly(decoder, inputs, times=2, sampling=GREEDY)
        with th.no_grad():  # weights are float32, and what they are rounded to must not be kept
            decoder.projector.fc1.weight.mul_(1 + 0.2 * (step + 1))
    assert len(decoder.graphs) == 1
    rounded = first_logits()
    decoder.set_autocast(None)
    assert len(decoder.graphs) == 0, "what was recorded computes in bfloat16"
    changed = first_logits()
    assert (exact - changed).abs().max() > 0.1
    assert 1e-4 < (rounded - changed).abs().max() < 0.2


@pytest.mark.parametrize("recorded_in_inference_mode", [True, False])
def test_inference_mode_and_none_use_the_same_graph(
    decoder: OpenVLA, inputs: Prompts, recorded_in_inference_mode: bool
) -> None:
    for inference in [recorded_in_inference_mode] * 2 + [not recorded_in_inference_mode, recorded_in_inference_mode]:
        with th.inference_mode(inference):
            assert_decodes_as_eagerly(decoder, tuple(x.clone() for x in inputs), times=1)
    assert len(decoder.graphs) == 1


# --- Bounds, switches, failures -----------------------------------------------------------------------------------


def test_only_so_many_graphs_are_kept_and_the_longest_unused_goes(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    made: list[Tape] = []

    def record(run: Callable[[], Any], device: th.device, beside: Tape | None) -> Tape:
        made.append(Tape(run, device, beside))
        return made[-1]

    record.device_type = "cpu"  # type: ignore[attr-defined]
    model.graphs = GraphCache(record, max_graphs=2)
    inputs = prompts(batch)
    first, second, third = (rows(inputs, i) for i in range(3))
    try:
        for shape in (first, first, second, second, first, third, third):
            model.sample_actions(*shape, sampling=GREEDY)
        assert len(model.graphs) == 2
        assert [bool(tape.outputs) for tape in made] == [True, False, True]
        assert [tape.n_replays for tape in made] == [2, 1, 1]
        model.set_cuda_graphs(False)
        assert not any(tape.outputs for tape in made)
    finally:
        model.graphs = GraphCache()


def test_shapes_that_never_return_are_not_recorded(decoder: OpenVLA, inputs: Prompts) -> None:
    for i in range(3):
        decoder.sample_actions(*rows(inputs, i), sampling=GREEDY)
    assert len(decoder.graphs) == 0


def test_it_can_be_turned_off_and_on(decoder: OpenVLA, inputs: Prompts) -> None:
    decoder.set_cuda_graphs(False)
    assert_decodes_as_eagerly(decoder, inputs)
    assert len(decoder.graphs) == 0
    decoder.set_cuda_graphs(True)
    assert_decodes_as_eagerly(decoder, inputs)
    assert len(decoder.graphs) == 1


def test_nothing_is_recorded_on_a_cpu_by_default(model: OpenVLA, batch: dict[str, th.Tensor]) -> None:
    assert model.graphs.enabled
    for _ in range(3):
        model.sample_actions(*prompts(batch))
    assert len(model.graphs) == 0


def test_copies_have_graphs_of_their_own(decoder: OpenVLA, inputs: Prompts) -> None:
    for _ in range(2):
        decoder.sample_actions(*inputs)
    twin = copy.deepcopy(decoder)
    assert len(decoder.graphs) == 1
    assert len(twin.graphs) == 0
    assert_decodes_as_eagerly(twin, inputs)
    decoder.set_cuda_graphs(False)
    assert not pickle.loads(pickle.dumps(decoder.graphs)).enabled


def test_graphs_do_not_keep_a_model_alive(backend: tuple[Any, str]) -> None:
    model = perturbed_tiny().to(backend[1])
    model.graphs = GraphCache(backend[0])
    inputs = tuple(x.to(model.device) for x in prompts(make_batch(model)))
    for _ in range(2):
        model.sample_actions(*inputs)
    assert len(model.graphs) == 1
    alive = weakref.ref(model)
    del model
    assert alive() is None


def test_what_cannot_be_recorded_is_said_once_and_runs_anyway(decoder: OpenVLA, inputs: Prompts) -> None:
    class Waiting(th.nn.Module):
        def forward(self, x: th.Tensor) -> th.Tensor:
            return x * float(x.abs().sum() > 0)

    decoder.projector.fc2 = th.nn.Sequential(decoder.projector.fc2, Waiting())
    decoder.sample_actions(*inputs)
    with pytest.warns(RuntimeWarning, match="could not be recorded as a CUDA graph and goes on without"):
        decoder.sample_actions(*inputs)
    assert not decoder.graphs.enabled
    assert_decodes_as_eagerly(decoder, inputs)
    assert decoder.sample_actions(*inputs).logits.isfinite().all()  # draws from torch's global generator


def test_logits_that_are_not_finite_are_no_actions(decoder: OpenVLA, inputs: Prompts) -> None:
    ids, mask, pixels = inputs
    for deterministic in (True, False, True, False):
        with pytest.raises(FloatingPointError, match="action logits are not finite"):
            decoder.sample_actions(ids, mask, pixels * float("nan"), sampling=Sampling(deterministic))
