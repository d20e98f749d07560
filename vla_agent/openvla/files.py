"""Finding a checkpoint's folder and reading its configuration; knows neither torch nor transformers."""

import logging
import re
from pathlib import Path

from libero_gym.common.json_files import read_json
from vla_agent.common.hub import download
from vla_agent.common.shipped import SHIPPED_FOLDER
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.config_checks import check_statistics

logger = logging.getLogger(__name__)

# Randomly initialised; "tiny-libero", which ships beside it, has learned from demonstrations.
TINY_FOLDER = SHIPPED_FOLDER / "tiny"

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
STATISTICS_FILE = "dataset_statistics.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Modules that OpenVLA-OFT keeps in files of their own, "<module>--<step>_checkpoint.pt"; or converted to safetensors.
EXTRA_MODULES = ("proprio_projector", "action_head")
# Its checkpoints for LIBERO decide 8 actions from 2 cameras, which no file of theirs says.
_OFT_CHUNK_SIZE, _OFT_NUM_IMAGES = 8, 2

# What a download is restricted to. Nothing in these is ever run: OFT's files are read by `torch_file`.
_METADATA_PATTERNS = [CONFIG_FILE, PREPROCESSOR_FILE, STATISTICS_FILE, *TOKENIZER_FILES, "training.json"]
_WEIGHTS_PATTERNS = ["*.safetensors", INDEX_FILE, *(f"{module}--*" for module in EXTRA_MODULES)]


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, or put into the model it describes."""


def resolve_folder(path_or_id: str | Path, *, weights: bool) -> Path:
    """Folder of a checkpoint, downloaded if it is the id of one on the hub.

    Args:
        path_or_id: A folder, the name of a model that ships with this package (see `shipped_names`), or a hub id.
        weights: Whether to download the weights, too, and not only the files beside them.

    Raises:
        CheckpointError: If there is no such folder, and no such id or no way to the hub.
    """
    name = str(path_or_id)
    shipped = shipped_names()
    if name in shipped:
        return SHIPPED_FOLDER / name
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no checkpoint folder '{name}'. Give an existing folder, {' or '.join(map(repr, shipped))}, or a "
            "hub id such as 'openvla/openvla-7b-finetuned-libero-spatial'."
        )
    patterns = _METADATA_PATTERNS + (_WEIGHTS_PATTERNS if weights else [])
    return download(name, patterns, "checkpoint", CheckpointError)


def shipped_names() -> list[str]:
    """Names of the checkpoints that ship with this package."""
    return sorted(path.name for path in SHIPPED_FOLDER.iterdir() if (path / CONFIG_FILE).is_file())


_OF_RUNS = ("run.json", "state.json")  # beside and in what a learner saves


def read_config(folder: Path) -> OpenVLAConfig:
    """Configuration of a checkpoint folder; a `dataset_statistics.json` replaces its statistics.

    Fine-tuning writes that file beside the base model's config, and the published code reads it so.

    Raises:
        CheckpointError: If the folder has no configuration, or not one of an OpenVLA.
    """
    if not (folder / CONFIG_FILE).is_file():
        is_run = any((folder / name).is_file() for name in _OF_RUNS)
        way = " A run's saves are no checkpoints: load one, and write its policy.backbone.save_pretrained(folder)."
        raise CheckpointError(f"Checkpoint folder '{folder}' has no {CONFIG_FILE}.{way if is_run else ''}")
    try:
        config = OpenVLAConfig.from_json(folder / CONFIG_FILE)
        if (folder / STATISTICS_FILE).is_file():
            norm_stats = read_json(folder / STATISTICS_FILE)
            check_statistics(norm_stats, STATISTICS_FILE)
            config.norm_stats = norm_stats
    except ValueError as error:
        raise CheckpointError(f"Checkpoint folder '{folder}': {error}") from error
    _describe_oft(config, folder)
    return config


def extra_files(folder: Path) -> dict[str, Path]:
    """Files of `EXTRA_MODULES` in a folder, by module; the last step's if there are several."""
    found: dict[str, Path] = {}
    for module in EXTRA_MODULES:
        paths = folder.glob(f"{module}--*")
        files = [path for path in paths if path.suffix in (".pt", ".safetensors") and path.is_file()]
        if files:
            found[module] = max(files, key=lambda path: (_step(path), path.suffix))
    return found


def _step(path: Path) -> int:
    """Training step in a file's name; -1 if it names none."""
    match = re.search(r"--(\d{1,18})", path.name)
    return int(match[1]) if match else -1


def _describe_oft(config: OpenVLAConfig, folder: Path) -> None:
    """Completes the configuration of an OpenVLA-OFT checkpoint, whose config.json is that of a plain OpenVLA."""
    extras = extra_files(folder)
    if not extras or config.decoding == "parallel":
        return
    config.decoding, config.action_chunk_size = "parallel", _OFT_CHUNK_SIZE
    config.num_images = _OFT_NUM_IMAGES
    config.use_state = "proprio_projector" in extras
    config.action_head = "l1" if "action_head" in extras else None
    logger.info(
        "'%s' holds OpenVLA-OFT's %s, so it is taken for a model of %d images and chunks of %d actions; where that is "
        "wrong, write 'decoding', 'num_images' and 'action_chunk_size' into its config.json.",
        folder,
        " and ".join(extras),
        config.num_images,
        config.action_chunk_size,
    )
