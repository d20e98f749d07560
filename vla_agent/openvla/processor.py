"""Everything a checkpoint says besides its weights: words to tokens, image sizes, action statistics."""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agent.action_tokens import ActionTokenizer, action_table, unnormalize
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.folder import (
    PREPROCESSOR_FILE,
    STATISTICS_FILE,
    TOKENIZER_FILES,
    CheckpointError,
    read_config,
    resolve_folder,
)

# What timm calls IMAGENET_DEFAULT_MEAN / STD (DINOv2) and IMAGENET_INCEPTION_MEAN / STD (SigLIP).
IMAGE_MEANS = {True: [0.485, 0.456, 0.406], False: [0.5, 0.5, 0.5]}
IMAGE_STDS = {True: [0.229, 0.224, 0.225], False: [0.5, 0.5, 0.5]}

PROMPT = "In: What action should the robot take to {}?\nOut:"
# prismatic/models/vlms of the v0.1 checkpoints, whose base was Vicuna.
PROMPT_V01 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What action should the robot take to {}? ASSISTANT:"
)

EncodeFn = Callable[[str], list[int]]


class Processor:
    """Turns instructions into prompts and action tokens into actions, without the model's weights.

    Args:
        config: The checkpoint's configuration.
        encode: Token ids of a text, BOS included.
        files: Tokenizer and preprocessor files of the checkpoint, by name, to be written back as they were read.
        prompt: Prompt with `{}` for the instruction.
    """

    def __init__(
        self, config: OpenVLAConfig, encode: EncodeFn, files: dict[str, bytes] | None = None, prompt: str = PROMPT
    ) -> None:
        self.config = config
        self.files = dict(files or {})
        self.prompt = prompt
        self.action_tokenizer = ActionTokenizer(config.vocab_size)
        self._encode = encode
        image_settings = json.loads(self.files.get(PREPROCESSOR_FILE, b"{}"))
        kinds = [tower.is_dinov2 for tower in config.towers]
        # Published files hold the means as bfloat16 rounded them, and the published processor uses those.
        self.image_means: list[list[float]] = image_settings.get("means") or [IMAGE_MEANS[kind] for kind in kinds]
        self.image_stds: list[list[float]] = image_settings.get("stds") or [IMAGE_STDS[kind] for kind in kinds]

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.config.image_size

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary, 32000 as published; the last 256 are the action tokens."""
        return self.config.vocab_size

    @property
    def unnorm_keys(self) -> list[str]:
        """Data sets that the checkpoint has action statistics for."""
        return list(self.config.norm_stats)

    def build_prompt(self, instruction: str) -> str:
        """The prompt of an instruction, in lower case as in training.

        Raises:
            TypeError: If the instruction is not a string.
        """
        if not isinstance(instruction, str):
            raise TypeError(f"An instruction must be a string, got {type(instruction).__name__}.")
        return self.prompt.format(instruction.lower())

    def tokenize(self, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt tokens of instructions.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, L), BOS first, padded on the right to the longest; without the
            empty piece (29871) that the model appends.

        Raises:
            TypeError: If given a single string, or something else than strings.
            ValueError: If given nothing.
        """
        if isinstance(instructions, str):
            raise TypeError("tokenize takes a sequence of instructions, got a single string; put it into a list.")
        rows = [self._prompt_ids(instruction) for instruction in instructions]
        if not rows:
            raise ValueError("tokenize needs at least one instruction, got none.")
        lengths = np.array([len(row) for row in rows])
        input_ids = np.full((len(rows), lengths.max()), self.config.pad_token_id, dtype=np.int64)
        attention_mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        input_ids[attention_mask.astype(bool)] = np.concatenate(rows)
        return input_ids, attention_mask

    def max_prompt_length(self, instructions: Sequence[str]) -> int:
        """Length L that `tokenize` pads these instructions to."""
        return self.tokenize(instructions)[0].shape[1]

    def action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """Action statistics (`q01`, `q99`, `mask`, ...) of a data set.

        Args:
            unnorm_key: Name of the data set; may be left out where there is a single one.

        Raises:
            ValueError: If the checkpoint lacks the key, has none at all, or has several and none is named.
        """
        keys = self.unnorm_keys
        if not keys:
            raise ValueError("The checkpoint has no action statistics; put a dataset_statistics.json into its folder.")
        if unnorm_key is None:
            if len(keys) > 1:
                raise ValueError(f"The checkpoint has statistics of several data sets; give unnorm_key, one of {keys}.")
            unnorm_key = keys[0]
        if unnorm_key not in keys:
            close = difflib.get_close_matches(unnorm_key, keys, n=1)
            guess = f" Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"The checkpoint has no statistics for unnorm_key '{unnorm_key}'.{guess} It has: {keys}.")
        return self.config.norm_stats[unnorm_key]["action"]

    def action_table(self, unnorm_key: str | None = None) -> np.ndarray:
        """What a LIBERO environment is given for each bin, float64 (7, 256); see `vla_agent.action_tokens`."""
        return action_table(self.action_stats(unnorm_key))

    def normalize_state(self, state: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Robot states scaled so that their q01 and q99 are -1 and 1, and clipped there.

        Args:
            state: Shape (..., 8).
            unnorm_key: As in `action_stats`.

        Returns:
            float32, the same shape.

        Raises:
            ValueError: If the checkpoint has no state statistics, or of another width.
        """
        self.action_stats(unnorm_key)  # names an unknown key
        stats = self.config.norm_stats[unnorm_key or self.unnorm_keys[0]].get("proprio", {})
        q01, q99 = (np.asarray(stats.get(name, ()), dtype=np.float64) for name in ("q01", "q99"))
        values = np.asarray(state, dtype=np.float64)
        if values.shape[-1:] != q01.shape or q01.shape != q99.shape:
            raise ValueError(
                f"States of shape {values.shape} do not fit the checkpoint's 'proprio' statistics, which describe "
                f"{q01.size} numbers."
            )
        scaled = 2 * (values - q01) / (q99 - q01 + 1e-8) - 1  # 1e-8 as in the published code
        mask = np.asarray(stats.get("mask", np.ones(q01.shape)), dtype=bool)
        return np.clip(np.where(mask, scaled, values), -1, 1).astype(np.float32)

    def decode_actions(self, action_ids: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Un-normalised actions, float64 (..., 7), of token ids (..., 7)."""
        return unnormalize(self.action_tokenizer.decode(action_ids), self.action_stats(unnorm_key))

    def fingerprint(self) -> str:
        """Short hash of tokenizer, prompt, action statistics and chunk length.

        An environment and a policy that decode the same bins to the same actions have equal ones.
        """
        digest = hashlib.sha256()
        for name in ("tokenizer.json", "tokenizer.model"):
            digest.update(self.files.get(name, b""))
        settings = [self.prompt, self.vocab_size, self.config.action_chunk_size, self.config.norm_stats]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def _prompt_ids(self, instruction: str) -> list[int]:
        ids = self._encode(self.build_prompt(instruction))
        bos = self.config.bos_token_id
        return ids if ids[:1] == [bos] else [bos, *ids]


def load_processor(path_or_id: str | Path) -> Processor:
    """Reads a checkpoint's tokenizer, image sizes and statistics without touching its weights.

    Args:
        path_or_id: A folder, "tiny", or a hub id.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    folder = resolve_folder(path_or_id, weights=False)
    return read_processor(folder, read_config(folder), str(path_or_id))


def read_processor(folder: Path, config: OpenVLAConfig, name: str = "") -> Processor:
    """Reads tokenizer and preprocessor files of a checkpoint folder.

    Args:
        folder: Checkpoint folder.
        config: Its configuration.
        name: What the user called it; "v01" in it selects the prompt of those checkpoints, as in the published code.

    Raises:
        CheckpointError: If the folder has no tokenizer.
    """
    names = [*TOKENIZER_FILES, PREPROCESSOR_FILE, STATISTICS_FILE]
    files = {file: (folder / file).read_bytes() for file in names if (folder / file).is_file()}
    return Processor(config, _read_encoder(folder), files, PROMPT_V01 if "v01" in name else PROMPT)


def _read_encoder(folder: Path) -> EncodeFn:
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda text: tokenizer.encode(text).ids
    if (folder / "tokenizer.model").is_file():
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise CheckpointError(
                f"Checkpoint folder '{folder}' has a tokenizer.model but no tokenizer.json, which takes the package "
                "sentencepiece to read: pip install sentencepiece."
            ) from error
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return lambda text: list(pieces.encode(text))
    raise CheckpointError(f"Checkpoint folder '{folder}' has no tokenizer: expected tokenizer.json or tokenizer.model.")
