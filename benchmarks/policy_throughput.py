"""How fast OpenVLA decodes and learns, next to transformers' own ``generate()`` in the same run.

    python benchmarks/policy_throughput.py --out benchmarks/results/policy_throughput.json                # CPU: tiny
    python benchmarks/policy_throughput.py --model 7b --out benchmarks/results/policy_throughput_7b.json  # a GPU, 40 GB

``7b`` is the published architecture with random weights, unless ``--model`` is a checkpoint's folder or hub id. Ours
decodes a batch at once; the plain loop runs vision, projector and ``generate()`` for one observation after the other,
as the published evaluation does. Both produce seven tokens greedily from the same inputs. Times are medians with their
range; shares are of the matrix product rate that the device itself reaches in this run, in the weights' type.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from measuring import commit, report, summary
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vla_agent.bins import bin_log_probs
from vla_agent.lora import LoraSettings, add_lora
from vla_agent.openvla import OpenVLA, OpenVLAConfig
from vla_agent.openvla.sequence import KeyValueCache, causal_mask

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
    times = []
    for repeat in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        if repeat:
            times.append((time.perf_counter() - start) * 1e3)
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
def measure_decoding(model: OpenVLA, batch: int, repeats: int, rate: float) -> dict[str, Any]:
    """Milliseconds of vision, prefill and the single-token steps, and of all together as `sample_actions` runs them."""
    inputs, device = make_inputs(model, batch), model.device
    reset_memory(device)
    whole = measure(lambda: model.generate_actions(*inputs, deterministic=True), repeats, device)
    memory = peak_memory_gb(device)
    vision = measure(lambda: model.project(model.encode_images(inputs[2])), repeats, device)
    layout, prefix = model._embed_prefix(*inputs, None)
    positions, visible = model.columns(layout, model.n_action_tokens - 1)
    length = prefix.shape[1]

    def prefill() -> None:
        cache = KeyValueCache(len(model.language_model.model.layers), positions.shape[1])
        mask = causal_mask(None if visible is None else visible[:, :length], length)
        model.decode(prefix, positions[:, :length], mask, cache=cache, n_last=1)

    prefills = measure(prefill, repeats, device)
    share = operations(prefill) / statistics.median(prefills) * 1e3 / rate
    steps = statistics.median(whole) - statistics.median(vision) - statistics.median(prefills)
    return {
        "ms": summary(whole),
        "vision_ms": summary(vision),
        "prefill_ms": summary(prefills),
        "remaining_steps_ms": round(steps, 3),
        "actions_per_s": round(batch / statistics.median(whole) * 1e3, 2),
        "prefill_share_of_matrix_rate": round(share, 3),
        "peak_memory_gb": memory,
    }


@th.no_grad()
def measure_generate(model: OpenVLA, batch: int, repeats: int) -> list[float]:
    """Milliseconds of the plain loop: one observation after the other through transformers' ``generate()``."""
    ids, mask, pixels = make_inputs(model, batch)

    def loop() -> None:
        for row in range(batch):
            _, prefix = model._embed_prefix(ids[row : row + 1], mask[row : row + 1], pixels[row : row + 1], None)
            model.language_model.generate(
                inputs_embeds=prefix,
                attention_mask=prefix.new_ones(prefix.shape[:2], dtype=th.int64),
                max_new_tokens=model.n_action_tokens,
                min_new_tokens=model.n_action_tokens,
                do_sample=False,
                pad_token_id=model.config.pad_token_id,
            )

    return measure(loop, repeats, model.device)


# ---------------------------------------------------------------------------------------------------------- learning


def measure_update(model: OpenVLA, batch: int, repeats: int, rate: float) -> dict[str, Any]:
    """Milliseconds of one teacher-forced forward and backward pass over ``batch`` observations, adapters trained."""
    inputs, device = make_inputs(model, batch), model.device
    bins = th.randint(256, (batch, model.n_action_tokens), generator=th.Generator().manual_seed(0)).to(device)
    actions = model.action_token_ids[bins]

    def update() -> None:
        scores = model.score_actions(*inputs, actions, bins_only=True)
        loss = -bin_log_probs(scores.logits).gather(-1, bins[..., None]).mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    reset_memory(device)
    times = measure(update, repeats, device)
    return {
        "ms": summary(times),
        "observations_per_s": round(batch / statistics.median(times) * 1e3, 2),
        "share_of_matrix_rate": round(operations(update) / statistics.median(times) * 1e3 / rate, 3),
        "peak_memory_gb": peak_memory_gb(device),
    }


def reset_memory(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: th.device) -> float:
    """Most memory held so far: on the GPU since `reset_memory`, else of the process."""
    if device.type == "cuda":
        return round(th.cuda.max_memory_allocated(device) / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def provenance(args: argparse.Namespace, device: th.device, dtype: th.dtype) -> dict[str, Any]:
    """What the numbers hold for."""
    name = th.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {th.get_num_threads()} threads"
    return {
        "commit": commit(),
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "model": args.model,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers", "peft")},
    }


def main() -> None:
    gpu = th.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="7b" if gpu else "tiny", help="tiny, 7b, a folder or a hub id")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--update-batch", type=int, default=16)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
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
        ours = measure_decoding(model, batch, args.repeats, rate)
        generate = measure_generate(model, batch, max(1, args.repeats // 2))
        ratio = statistics.median(generate) / ours["ms"]["median"]
        results["decoding"][batch] = ours | {"generate_ms": summary(generate), "times_faster": round(ratio, 2)}
    add_lora(model, LoraSettings(), model.unused_parameter_names())
    model.set_gradient_checkpointing(args.gradient_checkpointing)
    settings = {"batch": args.update_batch, "lora": 32, "gradient_checkpointing": args.gradient_checkpointing}
    results["update"] = settings | measure_update(model, args.update_batch, args.repeats, rate)
    report(results, args.out)


if __name__ == "__main__":
    main()
