"""Everything that a checkpoint says besides its weights: prompts, image sizes, action statistics."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.checks import did_you_mean
from libero_gym.common.json_files import MAX_BYTES, parse_json
from vla_agent.action_tokens import ActionTokenizer, BinCodec, action_table, normalize, unnormalize
from vla_agent.common.hashes import fingerprint
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.config_checks import check_numbers, finite
from vla_agent.openvla.files import (
    PREPROCESSOR_FILE,
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

PROMPTS = {"v01": PROMPT_V01, "plain": PROMPT, "": PROMPT}  # by `OpenVLAConfig.prompt_style`

# Prompts whose token ids are kept; training asks for few of them again and again.
MAX_PROMPTS = 4096

EncodeFn = Callable[[str], list[int]]


class Processor:
    """Turns instructions into prompts and action tokens into actions, without the model's weights.

    Args:
        config: The checkpoint's configuration.
        encode: Gives the token ids of a text, BOS included.
        files: Tokenizer and preprocessor files of the checkpoint, by name; they are written back as they were read.
        prompt: Prompt with `{}` for the instruction.

    Raises:
        CheckpointError: If the preprocessor's file is damaged or does not fit the configuration.
    """

    def __init__(
        self, config: OpenVLAConfig, encode: EncodeFn, files: dict[str, bytes] | None = None, prompt: str = PROMPT
    ) -> None:
        self.config = config
        self.files = dict(files or {})
        self.prompt = prompt
        self.action_tokenizer = ActionTokenizer(config.vocab_size)
        self._encode = functools.lru_cache(MAX_PROMPTS)(lambda text: tuple(encode(text)))
        settings = parse_json(self.files.get(PREPROCESSOR_FILE, b"{}"), PREPROCESSOR_FILE, error=CheckpointError)
        kinds = [tower.is_dinov2 for tower in config.towers]
        # Published files hold the means as bfloat16 rounded them, and the published processor uses those.
        self.image_means = _image_numbers(settings, "means") or [IMAGE_MEANS[kind] for kind in kinds]
        self.image_stds = _image_numbers(settings, "stds") or [IMAGE_STDS[kind] for kind in kinds]
        if not len(self.image_means) == len(self.image_stds) == len(kinds) or 0 in np.ravel(self.image_stds):
            raise CheckpointError(
                f"{PREPROCESSOR_FILE} must give 'means' and 'stds' of {len(kinds)} vision towers, the latter not 0."
            )

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
        """The prompt of an instruction, in lower case as in training, with the configuration's word behind it.

        Raises:
            TypeError: If the instruction is not a string.
        """
        if not isinstance(instruction, str):
            raise TypeError(f"An instruction must be a string, got {type(instruction).__name__}.")
        return self.prompt.format(with_word(instruction.lower(), self.config.prompt_word))

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

    def action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """Action statistics (`q01`, `q99`, `mask`, ...) of a data set.

        Args:
            unnorm_key: Name of the data set; may be left out if there is a single one.

        Raises:
            ValueError: If the checkpoint lacks the key, has none at all, or has several and none is named; or if its
                statistics are no numbers.
        """
        keys = self.unnorm_keys
        if not keys:
            raise ValueError("The checkpoint has no action statistics; put a dataset_statistics.json into its folder.")
        if unnorm_key is None:
            if len(keys) > 1:
                raise ValueError(f"The checkpoint has statistics of several data sets; give unnorm_key, one of {keys}.")
            unnorm_key = keys[0]
        if unnorm_key not in keys:
            guess = did_you_mean(unnorm_key, keys)
            raise ValueError(f"The checkpoint has no statistics for unnorm_key '{unnorm_key}'.{guess} It has: {keys}.")
        stats: dict[str, Any] = self.config.norm_stats[unnorm_key]["action"]
        check_numbers(stats, f"Action statistics of '{unnorm_key}'")
        return stats

    def action_table(self, unnorm_key: str | None = None) -> np.ndarray:
        """What a LIBERO environment is given for each bin, float64 (7, 256); see `vla_agent.action_tokens`."""
        return action_table(self.action_stats(unnorm_key))

    def codec(self, unnorm_key: str | None = None) -> BinCodec:
        """Actions out of bins, by the statistics of a data set, and prompts out of instructions.

        Args:
            unnorm_key: As in `action_stats`.

        Raises:
            ValueError: As `action_stats` does.
        """
        return BinCodec(self.action_table(unnorm_key), self.config.action_chunk_size, self._prompt_ids)

    def normalize_state(self, state: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Robot states scaled so that their q01 and q99 are -1 and 1, and clipped there.

        Args:
            state: Shape (..., 8).
            unnorm_key: As in `action_stats`.

        Returns:
            float32, the same shape.

        Raises:
            ValueError: If the checkpoint has no state statistics, or they have another width.
        """
        self.action_stats(unnorm_key)  # names an unknown key
        stats = self.config.norm_stats[unnorm_key or self.unnorm_keys[0]].get("proprio", {})
        check_numbers(stats, "State statistics")
        q01, q99 = (np.asarray(stats.get(name, ()), dtype=np.float64) for name in ("q01", "q99"))
        values = np.asarray(state, dtype=np.float64)
        if values.shape[-1:] != q01.shape or q01.shape != q99.shape:
            raise ValueError(
                f"States of shape {values.shape} do not fit the checkpoint's 'proprio' statistics, which describe "
                f"{q01.size} numbers."
            )
        return np.clip(normalize(values, stats), -1, 1).astype(np.float32)

    def decode_actions(self, action_ids: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Un-normalised actions, float64 (..., 7), of token ids (..., 7)."""
        return unnormalize(self.action_tokenizer.decode(action_ids), self.action_stats(unnorm_key))

    def fingerprint(self) -> str:
        """Short hash of tokenizer, prompt, action statistics and chunk length.

        An environment and a policy that decode the same bins to the same actions have equal ones.
        """
        settings: list[Any] = [self.prompt, self.vocab_size, self.config.action_chunk_size, self.config.norm_stats]
        settings += [self.config.prompt_word] if self.config.prompt_word else []  # saved runs know those without
        tokenizer = [self.files.get(name, b"") for name in ("tokenizer.json", "tokenizer.model")]
        return fingerprint([*tokenizer, json.dumps(settings, sort_keys=True).encode()])

    def _prompt_ids(self, instruction: str) -> list[int]:
        ids = list(self._encode(self.build_prompt(instruction)))
        bos = self.config.bos_token_id
        return ids if ids[:1] == [bos] else [bos, *ids]


def with_word(instruction: str, word: str) -> str:
    """The instruction with a word behind it, as in "put the bowl on the stove well"; alone if the word is empty."""
    return f"{instruction} {word}" if word else instruction


def load_processor(path_or_id: str | Path) -> Processor:
    """Reads a checkpoint's tokenizer, image sizes and statistics without touching its weights.

    Args:
        path_or_id: A folder, the name of a model that ships with this package ("tiny", "tiny-libero"), or a hub id.

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
        name: Name that the user gave. "v01" in its last part selects the prompt of those checkpoints, as in the
            published code, unless the configuration says which it is; it does from then on.

    Raises:
        CheckpointError: If the folder has no tokenizer, or a file is damaged or belongs to another model.
    """
    names = [*TOKENIZER_FILES, PREPROCESSOR_FILE]
    config.prompt_style = config.prompt_style or ("v01" if "v01" in Path(name).name else "")
    files = {file: _read_bytes(folder / file) for file in names if (folder / file).is_file()}
    try:
        return Processor(config, _read_encoder(files, config), files, PROMPTS[config.prompt_style])
    except CheckpointError as error:
        raise CheckpointError(f"Checkpoint folder '{folder}': {error}") from error


def _read_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"'{path}' is larger than {MAX_BYTES / 2**20:.0f} MiB; no tokenizer's files are.")
    return content


def _image_numbers(settings: dict[str, Any], key: str) -> list[list[float]]:
    """Means or deviations by tower and colour; empty if the file leaves them out."""
    rows = settings.get(key) or []
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise CheckpointError(f"{PREPROCESSOR_FILE} must give '{key}' as three numbers for each vision tower.")
    try:
        return [[finite(f"{PREPROCESSOR_FILE} '{key}'", value) for value in row] for row in rows]
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _read_encoder(files: dict[str, bytes], config: OpenVLAConfig) -> EncodeFn:
    if "tokenizer.json" in files:
        from tokenizers import Tokenizer

        parse_json(files["tokenizer.json"], "tokenizer.json", error=CheckpointError)  # its sentences say what is wrong
        try:
            tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        except BaseException as error:  # tokenizers raises Exception itself, and on a panic what is not even that
            if isinstance(error, KeyboardInterrupt):
                raise
            raise CheckpointError(f"tokenizer.json describes no tokenizer ({error!s:.300}).") from error
        _check_vocabulary(max(tokenizer.get_vocab().values(), default=-1), config)
        return lambda text: tokenizer.encode(text).ids
    if "tokenizer.model" in files:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise CheckpointError(
                "It has a tokenizer.model but no tokenizer.json, which takes the package sentencepiece to read: "
                "pip install sentencepiece."
            ) from error
        try:
            pieces = SentencePieceProcessor(model_proto=files["tokenizer.model"])
            _check_vocabulary(pieces.vocab_size() - 1, config)
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"tokenizer.model is damaged or no sentencepiece model ({error!s:.300}).") from error
        return lambda text: list(pieces.encode(text))
    raise CheckpointError("It has no tokenizer: expected tokenizer.json or tokenizer.model.")


def _check_vocabulary(largest: int, config: OpenVLAConfig) -> None:
    """Refuses the tokenizer of another model: one whose ids have no embedding, or one without ids."""
    n_rows = config.vocab_size + config.pad_to_multiple_of
    if not 0 <= largest < n_rows:
        raise CheckpointError(
            f"The tokenizer's ids reach {largest}, but the model has embeddings for 0 to {n_rows - 1}; it belongs to "
            "another model."
        )
