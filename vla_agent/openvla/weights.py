"""Checkpoints in the published layout: safetensors (sharded or not), config, preprocessor and tokenizer files.

Loading is strict by name and shape, never unpickles, and holds one shard at a time besides the module.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from libero_gym.common.atomic import allowed
from libero_gym.common.checks import as_path
from libero_gym.common.json_files import read_json
from vla_agent.common.atomic import naming, save_tensors
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.files import (
    CONFIG_FILE,
    INDEX_FILE,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    extra_files,
    read_config,
    resolve_folder,
)
from vla_agent.openvla.processor import Processor, read_processor
from vla_agent.openvla.published import published_fields
from vla_agent.openvla.torch_file import read_state_dict

Shapes = dict[str, tuple[int, ...]]
Module = TypeVar("Module", bound=nn.Module)
Build = Callable[[OpenVLAConfig, Processor], Module]

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_module(
    build: Build[Module], path_or_id: str | Path, *, dtype: th.dtype | None, device: th.device | str | None
) -> Module:
    """Builds a module from a checkpoint's configuration and fills it, shard by shard.

    Args:
        build: Makes the module, whose tensors are named as the checkpoint's; called where torch's device is "meta".
        path_or_id: A folder, the name of a model that ships with this package, or a hub id.
        dtype: Type of the weights; float32 on a CPU and bfloat16 elsewhere if None.
        device: Where to put them; the CPU if None.

    Raises:
        CheckpointError: If there is no such checkpoint, it has no safetensors, or its tensors are not, by name and
            shape, those of the module.
        TypeError: If ``path_or_id`` is no path.
        ValueError: If ``dtype`` is no type of weights.
    """
    if dtype is not None and not (isinstance(dtype, th.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r}; expected a floating type of torch, such as torch.bfloat16, or None.")
    path_or_id = path_or_id if isinstance(path_or_id, str) else as_path("path_or_id", path_or_id)
    target = th.device(device or "cpu")
    dtype = dtype or (th.float32 if target.type == "cpu" else th.bfloat16)
    folder = resolve_folder(path_or_id, weights=True)
    shards = _find_shards(folder)  # before the config, so that an empty folder is told what it lacks
    config = read_config(folder)
    found = _read_shapes(shards)
    extras = {name: tensor for name, tensor in _read_extras(folder).items() if name not in found}  # else saved anew
    found |= {name: tuple(tensor.shape) for name, tensor in extras.items()}
    _complete_tower_sizes(config, found)
    processor = read_processor(folder, config, str(path_or_id))
    module = _build(build, config, processor, folder)
    _check_tensors(found, module, folder)
    _check_memory(found, dtype, target)
    quiet = not sys.stderr.isatty() or len(shards) < 2
    for shard in tqdm(shards, desc="Loading checkpoint shards", unit="shard", disable=quiet):
        module.load_state_dict(_read_shard(shard, dtype, target), strict=False, assign=True)
    converted = {name: tensor.to(target, dtype) for name, tensor in extras.items()}
    module.load_state_dict(converted, strict=False, assign=True)
    return module


def save_module(
    module: nn.Module, config: OpenVLAConfig, files: Mapping[str, bytes], path: str | Path, *, max_shard_size: int
) -> None:
    """Writes a module in the published layout; see `vla_agent.openvla.OpenVLA.save_pretrained`.

    Args:
        module: Its weights are written in the type they have.
        config: What its config.json says.
        files: Further files by name, such as the tokenizer's.
        path: Folder, made if it does not exist.
        max_shard_size: Bytes per safetensors file.

    Raises:
        FileExistsError: If a file of one of the checkpoint's names is there that is no part of an OpenVLA checkpoint.
        OSError: If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    _check_free(target, {CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, *files})
    with naming(target), _temporary_folder(target) as folder:
        _write_weights(module, folder, max_shard_size)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if (target / STATISTICS_FILE).is_file():  # it would hide those of the configuration
            (folder / STATISTICS_FILE).write_text(json.dumps(config.norm_stats, indent=2) + "\n", encoding="utf-8")
        fields = {**published_fields(config), **config.to_dict()}
        if not config.prompt_style and "v01" in target.name:  # which would choose another prompt
            fields["prompt_style"] = "plain"
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        _publish(folder, target)


def _build(build: Build[Module], config: OpenVLAConfig, processor: Processor, folder: Path) -> Module:
    """The module without weights."""
    try:
        with th.device("meta"):
            return build(config, processor)
    except Exception as error:  # transformers and torch raise many kinds
        raise CheckpointError(
            f"The {CONFIG_FILE} of '{folder}' describes no model that can be built ({error!r:.300})."
        ) from error


def _find_shards(folder: Path) -> list[Path]:
    """Weight files: those that the index names if there is one, else the single file."""
    if (folder / INDEX_FILE).is_file():
        names = _read_index(folder / INDEX_FILE)
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"Checkpoint folder '{folder}' lacks the shards {', '.join(absent)} of its index.")
        return [folder / name for name in names]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    pickled = sorted(path.name for pattern in _PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"Checkpoint folder '{folder}' has only pickled weights ({', '.join(pickled[:3])}), which are never loaded "
            "because unpickling runs code; convert them to safetensors."
        )
    raise CheckpointError(
        f"Checkpoint folder '{folder}' has no weights: expected {WEIGHTS_FILE}, or shards with {INDEX_FILE}."
    )


def _read_index(path: Path) -> list[str]:
    """Names of the shards that an index lists; they are files beside it."""
    weight_map = read_json(path, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"'{path}' is damaged: expected 'weight_map', an object of file names by tensor.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if re.fullmatch(r"[^/\\\0]+\.safetensors", name) is None:
            raise CheckpointError(f"'{path}' names {name!r:.80}; expected safetensors files in its own folder.")
    return names


def _read_shapes(shards: list[Path]) -> Shapes:
    """Shape of every tensor by name, from the files' headers."""
    found: Shapes = {}
    for shard in shards:
        with _open(shard) as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    return found


def _read_extras(folder: Path) -> dict[str, th.Tensor]:
    """Tensors, by name, of the modules that OpenVLA-OFT keeps in separate files."""
    tensors = {}
    for module, path in extra_files(folder).items():
        if path.suffix == ".safetensors":
            with _open(path) as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            content = read_state_dict(path)
        # DistributedDataParallel, in which OFT trains, puts "module." before every name.
        tensors.update({f"{module}.{name.removeprefix('module.')}": tensor for name, tensor in content.items()})
    return tensors


def _check_memory(found: Shapes, dtype: th.dtype, device: th.device) -> None:
    """Complains about a GPU that is too small before loading begins, not half-way."""
    if device.type != "cuda":
        return
    free, total = th.cuda.mem_get_info(device)
    needed = sum(math.prod(shape) for shape in found.values()) * dtype.itemsize
    if needed > free:
        raise CheckpointError(
            f"The weights take {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, but {free / 1e9:.1f} of "
            f"the GPU's {total / 1e9:.1f} GB are free. Free it for this process, load with dtype=torch.bfloat16, take "
            "a larger GPU, or a smaller model; LoRA and small batches save memory in training, not the weights'."
        )


def _complete_tower_sizes(config: OpenVLAConfig, found: Shapes) -> None:
    """Takes an `mlp_dim` that the config leaves out from the weights, if it is not four times the width."""
    for name, sizes in zip(("featurizer", "fused_featurizer"), config.vision_tower_sizes or [], strict=False):
        shape = found.get(f"vision_backbone.{name}.blocks.0.mlp.fc1.weight")
        if "mlp_dim" not in sizes and shape and shape[0] != 4 * sizes["embed_dim"]:
            sizes["mlp_dim"] = shape[0]


def _check_tensors(found: Shapes, module: nn.Module, folder: Path) -> None:
    """Compares names and shapes in the files with the module's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": misshapen,
    }
    parts = [f"{len(names)} {problem}: {_listing(names)}" for problem, names in problems.items() if names]
    if parts:
        raise CheckpointError(
            f"The tensors in '{folder}' are not those of the model its config.json describes. " + "; ".join(parts) + "."
        )


def _listing(names: list[str], limit: int = 20) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextlib.contextmanager
def _open(shard: Path, device: str = "cpu") -> Iterator[Any]:
    try:
        with safe_open(str(shard), framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"'{shard}' is damaged or not a safetensors file ({error}); fetch it anew.") from error


def _read_shard(shard: Path, dtype: th.dtype, device: th.device) -> dict[str, th.Tensor]:
    with _open(shard) as file:
        # copy=True: without a conversion the tensors would be views of the mapped file, which may be replaced.
        return {name: file.get_tensor(name).to(device, dtype, copy=True) for name in file.keys()}  # noqa: SIM118


def _split_shards(tensors: Mapping[str, th.Tensor], max_shard_size: int) -> list[dict[str, th.Tensor]]:
    shards: list[dict[str, th.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        n_bytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + n_bytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += n_bytes
    return shards


def _write_weights(module: nn.Module, folder: Path, max_shard_size: int) -> None:
    tensors = module.state_dict()
    shards = _split_shards(tensors, max_shard_size)
    weight_map = {}
    for i, shard in enumerate(shards):
        name = WEIGHTS_FILE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(shard, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(allowed(0o666))  # safetensors leaves it readable by its owner alone
        weight_map.update(dict.fromkeys(shard, name))
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Renames a complete folder to `target`; if that exists, moves each file into it, config.json last."""
    folder.chmod(allowed(0o777))
    if not target.exists():
        folder.rename(target)
        return
    written = sorted((path.name for path in folder.iterdir()), key=lambda name: name == CONFIG_FILE)
    _check_free(target, set(written))
    before, moved = folder / "before", list[str]()
    before.mkdir()
    try:
        for name in sorted(_weights_files(target).union(written)):
            if (target / name).exists():
                os.replace(target / name, before / name)
        for name in written:
            moved.append(name)
            os.replace(folder / name, target / name)
    except BaseException:  # all is as it was
        for name in moved:
            (target / name).unlink(missing_ok=True)
        for path in before.iterdir():
            os.replace(path, target / path.name)
        raise


def _check_free(target: Path, names: set[str]) -> None:
    """Refuses a target whose files of these names belong to no OpenVLA checkpoint."""
    obstacle = None
    if os.path.lexists(target) and not target.is_dir():
        obstacle = "is no folder"
    elif target.is_dir():
        found = sorted(path.name for path in target.iterdir() if path.name in names or _SHARD.fullmatch(path.name))
        if found and not _is_openvla(target / CONFIG_FILE):
            obstacle = f"holds {', '.join(found[:3])}, but no {CONFIG_FILE} of an OpenVLA checkpoint"
    if obstacle is not None:
        raise FileExistsError(
            f"'{target}' {obstacle}; nothing was written, and what is there stays. Give the checkpoint a folder that "
            "is new or empty."
        )


def _is_openvla(path: Path) -> bool:
    try:
        return bool(read_json(path).get("model_type") == "openvla")
    except (OSError, ValueError):
        return False


def _weights_files(folder: Path) -> set[str]:
    """Names of a checkpoint's weight files: the usual ones, and the shards that its index lists."""
    names = {WEIGHTS_FILE, INDEX_FILE}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        named = read_json(folder / INDEX_FILE)["weight_map"].values()
        names |= {name for name in named if _SHARD.fullmatch(name)}
    return names
