"""How fast OpenVLA decodes and learns, next to transformers' own ``generate()`` in the same run.

    python benchmarks/policy_throughput.py --out benchmarks/results/policy_throughput.json                # CPU: tiny
    python benchmarks/policy_throughput.py --model 7b --out benchmarks/results/policy_throughput_7b.json  # a GPU, 40 GB

``7b`` is the published architecture with random weights, unless ``--model`` is a checkpoint's folder or hub id. Ours
decodes a batch at once, call by call and, on a GPU, replayed as a CUDA graph; the plain loop runs vision, projector and
``generate()`` for one observation after the other, as the published evaluation does. All produce seven tokens greedily
from the same inputs, and take turns, so that ratios are taken pair by pair. Times are medians with their range; shares
are of the matrix product rate that the device itself reaches in this run, in the weights' type. On an H200 the 7B run
takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch as th
from measuring import against, commit, report, summary
from peft.tuners import lora
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from libero_gym.common.version import package_versions
from vla_agent.bins import GREEDY, bin_log_probs
from vla_agent.openvla import OpenVLA, OpenVLAConfig
from vla_agent.openvla.sequence import KeyValueCache, causal_mask, lay_out_prompts
from vla_agent.policy.adapted_linear import AdaptedLinear
from vla_agent.policy.lora import LoraSettings, add_lora

PROMPT_LENGTH = 32  # tokens; LIBERO's are 25 to 40
TOWERS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
TEXT = {"vocab_size": 32064, "pad_token_id": 32000, "max_position_embeddings": 2048}  # else LlamaConfig's: Llama-2 7B
Inputs = tuple[th.Tensor, th.Tensor, th.Tensor]


def build(name: str, device: th.device, dtype: th.dtype) -> OpenVLA:
    """A checkpoint, or the published architecture with random weights for ``"7b"``."""
    if name != "7b":
        return OpenVLA.from_pretrained(name, device=device, dtype=dtype)
    with th.device("meta"):
        model = OpenVLA(OpenVLAConfig(timm_model_ids=TOWERS, image_sizes=[224, 224], text_config=TEXT)).to(dtype)
    model.to_empty(device=device)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model.eval()


def make_inputs(model: OpenVLA, batch: int) -> Inputs:
    """Random prompts of one length, and random images."""
    generator = th.Generator().manual_seed(0)
    config = model.config
    ids = th.randint(3, config.vocab_size - 256, (batch, PROMPT_LENGTH), generator=generator)
    ids[:, 0] = config.bos_token_id
    pixels = th.randn(batch, 6 * config.num_images, config.image_size, config.image_size, generator=generator)
    return ids.to(model.device), th.ones_like(ids).to(model.device), pixels.to(model.device, model.dtype)


def measure(run: Callable[[], Any], repeats: int, device: th.device) -> list[float]:
    """Milliseconds of each run after one that warms up."""
    return measure_in_turn({"": run}, repeats, device)[""]


def measure_in_turn(runs: dict[str, Callable[[], Any]], repeats: int, device: th.device) -> dict[str, list[float]]:
    """Milliseconds of each run, one after the other in every round, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def synchronize(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.synchronize(device)


def matrix_rate(device: th.device, dtype: th.dtype) -> float:
    """Floating-point operations per second of a large matrix product: the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (th.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(measure(lambda: a @ b, 10, device)) * 1e3


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of a run: those of matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# ---------------------------------------------------------------------------------------------------------- decoding


@th.no_grad()
def measure_parts(model: OpenVLA, batch: int, repeats: int, rate: float) -> dict[str, Any]:
    """Milliseconds of vision, prefill and the single-token steps behind it, of which parallel decoding has none."""
    inputs, device = make_inputs(model, batch), model.device
    vision = measure(lambda: model.project(model.encode_images(inputs[2])), repeats, device)
    layout = lay_out_prompts(*inputs[:2], model.config.empty_piece_id)
    prefix = model.embed_prefix(layout, inputs[2], None)
    positions, visible = model.columns(layout, model.n_action_tokens - 1)
    length = prefix.shape[1]

    def prefill() -> None:
        cache = KeyValueCache(len(model.language_model.model.layers), positions.shape[1])
        mask = causal_mask(None if visible is None else visible[:, :length], length)
        model.decode(prefix, positions[:, :length], mask, cache=cache, n_last=1)

    runs = {"prefill": prefill}
    if model.config.decoding == "autoregressive":
        runs["chain"] = lambda: model.decoder.draw(model, layout, prefix, GREEDY, None)
    times = measure_in_turn(runs, repeats, device)
    share = operations(prefill) / statistics.median(times["prefill"]) * 1e3 / rate
    results = {
        "vision_ms": summary(vision),
        "prefill_ms": summary(times["prefill"]),
        "prefill_share_of_matrix_rate": round(share, 3),
    }
    if "chain" in times:
        steps = [chain - first for chain, first in zip(times["chain"], times["prefill"], strict=True)]
        results["steps_ms"] = summary(steps)
    return results


@th.no_grad()
def measure_decoding(model: OpenVLA, batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of decoding a batch: eagerly, as a CUDA graph on a GPU, and by the plain loop."""
    inputs, device = make_inputs(model, batch), model.device

    def eager() -> th.Tensor:
        model.graphs.enabled = False  # keeps the graph, unlike `set_cuda_graphs`
        return model.generate_actions(*inputs, deterministic=True)

    def replayed() -> th.Tensor:
        model.graphs.enabled = True
        return model.generate_actions(*inputs, deterministic=True)

    def plain_loop() -> None:
        for row in range(batch):
            generate(model, *(tensor[row : row + 1] for tensor in inputs))

    reset_memory(device)
    expected = eager()
    results: dict[str, Any] = {"peak_memory_gb": peak_memory_gb(device)}
    runs: dict[str, Callable[[], Any]] = {"eager": eager, "plain_loop": plain_loop}
    if device.type == "cuda":
        replayed()  # seen, then recorded
        same = th.equal(replayed(), expected)
        results["cuda_graph"] = {"recorded": len(model.graphs) == 1, "same_actions": same}
        results["cuda_graph"]["peak_memory_gb"] = peak_memory_gb(device)
        runs["cuda_graph"] = replayed
    times = measure_in_turn(runs, repeats, device)
    model.set_cuda_graphs(False)  # frees the graph's memory for what is measured next
    loop = times.pop("plain_loop")
    for name, ours in times.items():
        ratios = against(ours, loop)
        target = results if name == "eager" else results[name]
        target["ms"] = ratios["ours"]
        target["actions_per_s"] = round(batch / statistics.median(ours) * 1e3, 2)
        target["times_faster_than_plain_loop"] = ratios["stock_by_ours"]
    return results | {"plain_loop_ms": summary(loop)}


def generate(model: OpenVLA, ids: th.Tensor, mask: th.Tensor, pixels: th.Tensor) -> th.Tensor:
    """Seven tokens of one observation by transformers' `generate`."""
    prefix = model.embed_prefix(lay_out_prompts(ids, mask, model.config.empty_piece_id), pixels, None)
    return model.language_model.generate(
        inputs_embeds=prefix,
        attention_mask=prefix.new_ones(prefix.shape[:2], dtype=th.int64),
        max_new_tokens=model.n_action_tokens,
        min_new_tokens=model.n_action_tokens,
        do_sample=False,
        pad_token_id=model.config.pad_token_id,
    )


# ---------------------------------------------------------------------------------------------------------- learning


def measure_update(model: OpenVLA, batch: int, repeats: int, rate: float) -> dict[str, Any]:
    """Milliseconds of one teacher-forced forward and backward pass over ``batch`` observations, adapters trained.

    Measures our adapted layers and peft's in turn.
    """
    inputs, device = make_inputs(model, batch), model.device
    bins = th.randint(256, (batch, model.n_action_tokens), generator=th.Generator().manual_seed(0)).to(device)

    def update() -> None:
        scores = model.score_actions(*inputs, bins)
        loss = -bin_log_probs(scores.logits).gather(-1, bins[..., None]).mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    def with_pefts_forward() -> None:
        with pefts_layers():
            update()

    reset_memory(device)
    update()
    memory = peak_memory_gb(device)
    times = measure_in_turn({"ours": update, "peft": with_pefts_forward}, repeats, device)
    ratios = against(times["ours"], times["peft"])
    return {
        "ms": ratios["ours"],
        "observations_per_s": round(batch / statistics.median(times["ours"]) * 1e3, 2),
        "share_of_matrix_rate": round(operations(update) / statistics.median(times["ours"]) * 1e3 / rate, 3),
        "peak_memory_gb": memory,
        "ms_with_pefts_layers": ratios["stock"],
        "times_faster_than_with_pefts_layers": ratios["stock_by_ours"],
    }


def pefts_layers() -> AbstractContextManager[Any]:
    """Adapted layers compute as peft's do inside this context."""
    return mock.patch.object(AdaptedLinear, "forward", lora.Linear.forward)


def reset_memory(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: th.device) -> float:
    """Most memory held so far: on the GPU since `reset_memory`, else of the process."""
    if device.type == "cuda":
        return round(th.cuda.max_memory_allocated(device) / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def provenance(args: argparse.Namespace, device: th.device, dtype: th.dtype) -> dict[str, Any]:
    """Model, device, commit and versions of a measurement."""
    name = th.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {th.get_num_threads()} threads"
    return {
        "commit": commit(),
        "device": name,
        "load_before": round(os.getloadavg()[0], 2),
        "dtype": str(dtype).removeprefix("torch."),
        "model": args.model,
        "versions": package_versions(("torch", "transformers", "peft")),
    }


def main() -> None:
    gpu = th.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="7b" if gpu else "tiny", help="tiny, 7b, a folder or a hub id")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--update-batch", type=int, default=16)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="in which ours and the plain loop take turns")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if gpu else "float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    device, dtype = th.device(args.device), getattr(th, args.dtype)
    results: dict[str, Any] = {"provenance": provenance(args, device, dtype)}
    model = build(args.model, device, dtype)
    rate = matrix_rate(device, dtype)
    results["matrix_rate_tflops"] = round(rate / 1e12, 3)
    results["decoding"] = {}
    for batch in tqdm(args.batches, desc="decoding"):
        parts = measure_parts(model, batch, args.repeats, rate)
        results["decoding"][batch] = measure_decoding(model, batch, args.rounds) | parts
    add_lora(model, LoraSettings(), model.unused_parameter_names())
    model.set_gradient_checkpointing(args.gradient_checkpointing)
    settings = {"batch": args.update_batch, "lora": 32, "gradient_checkpointing": args.gradient_checkpointing}
    try:
        results["update"] = settings | measure_update(model, args.update_batch, args.repeats, rate)
    except th.OutOfMemoryError as error:  # not at the cost of what has been measured
        results["update"] = settings | {"out_of_memory": str(error)}
    results["provenance"]["load_after"] = round(os.getloadavg()[0], 2)
    report(results, args.out)


if __name__ == "__main__":
    main()
