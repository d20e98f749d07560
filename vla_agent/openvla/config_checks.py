"""Checks of a `config.json` that somebody else wrote: fields have their types, and sizes are those of some model.

A model is built before its weights are read: ten million layers would take for ever, and a vocabulary of 10^12 would
raise whatever torch raises. The limits are far above the published models' sizes and far below what hurts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libero_gym.common.checks import flag, real_number, whole_number

# Largest values; Llama-2 70B has 80 layers of width 8192, and Llama-3's vocabulary has 128256 entries.
_TEXT_MAXIMA = {
    "vocab_size": 2**20,
    "hidden_size": 2**15,
    "intermediate_size": 2**17,
    "num_hidden_layers": 256,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "head_dim": 2**12,
    "max_position_embeddings": 2**24,
    "bos_token_id": 2**20,
    "eos_token_id": 2**20,
    "pad_token_id": 2**20,
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "pad_token_id")  # LlamaConfig takes None
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOWER_MAXIMA = {"embed_dim": 2**14, "depth": 256, "num_heads": 512, "mlp_dim": 2**16}
_MAX_IMAGE_SIZE = 4096
_MAX_NUMBERS = 1000  # of an action or a state
_MAX_DEPTH = 32
MAX_PROMPT_WORD = 64  # characters


def check_fields(fields: Mapping[str, Any]) -> None:
    """Checks the fields of an `OpenVLAConfig`.

    Raises:
        ValueError: If a field has a wrong type, or a size exceeds every model's.
    """
    for name in _list("timm_model_ids", fields["timm_model_ids"]):
        if not isinstance(name, str):
            raise ValueError(f"timm_model_ids must name vision towers, got {name!r:.80}.")
    for size in _list("image_sizes", fields["image_sizes"]):
        whole_number("image_sizes", size, 1, _MAX_IMAGE_SIZE)
    if fields["vision_tower_sizes"] is not None:
        for sizes in _list("vision_tower_sizes", fields["vision_tower_sizes"]):
            for key, value in _object("vision_tower_sizes", sizes).items():
                if key in _TOWER_MAXIMA:
                    whole_number(f"vision_tower_sizes {key}", value, 1, _TOWER_MAXIMA[key])
    _check_text(_object("text_config", fields["text_config"]))
    check_statistics(fields["norm_stats"])
    for name in ("n_action_bins", "pad_to_multiple_of", "pad_token_id", "empty_piece_id"):
        whole_number(name, fields[name], 0, 2**20)
    for name in ("action_chunk_size", "num_images"):
        if whole_number(name, fields[name], maximum=1000) < 1:
            raise ValueError(f"{name} must be at least 1, got {fields[name]}.")
    for name in ("use_fused_vision_backbone", "use_state", "learned_placeholders"):
        flag(name, fields[name])
    check_prompt_word(fields["prompt_word"])
    if fields["prompt_style"] not in ("", "v01", "plain"):
        raise ValueError(f"prompt_style is {fields['prompt_style']!r:.80}; expected 'v01', 'plain' or ''.")


def check_prompt_word(word: Any) -> None:
    """Checks the word that stands behind every instruction.

    Raises:
        ValueError: If it is no text of at most `MAX_PROMPT_WORD` characters in lower case, or has a line break.
    """
    if not isinstance(word, str) or len(word) > MAX_PROMPT_WORD or word != " ".join(word.lower().split()):
        raise ValueError(
            f"prompt_word is {word!r:.80}; expected a word or a few in lower case, such as 'well', of at most "
            f"{MAX_PROMPT_WORD} characters."
        )


def check_statistics(norm_stats: Any, name: str = "norm_stats") -> None:
    """Checks the statistics of all data sets; their numbers are checked when they are used.

    Args:
        norm_stats: `{unnorm_key: {"action": {"q01", "q99", "mask", ...}, ...}}`.
        name: What messages call it.

    Raises:
        ValueError: If it has another form, or a data set lacks "action".
    """
    check_depth(name, norm_stats)
    for key, stats in _object(name, norm_stats).items():
        if not isinstance(stats, dict) or not isinstance(stats.get("action"), dict):
            raise ValueError(
                f'{name} must hold {{"action": {{"q01": [...], "q99": [...]}}}} for each data set, but {key!r:.80} has '
                f"{_called(stats)}."
            )
        _object(f"{name} 'proprio'", stats.get("proprio", {}))


def check_depth(name: str, value: Any, limit: int = _MAX_DEPTH) -> None:
    """Refuses values that are nested too deeply to be copied and written again.

    Raises:
        ValueError: If the value is nested deeper than ``limit``.
    """
    if limit == 0:
        raise ValueError(f"{name} is nested more than {_MAX_DEPTH} deep.")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_depth(name, inner, limit - 1)


def check_numbers(stats: Mapping[str, Any], name: str) -> None:
    """Checks the numbers that statistics of actions or states hold; missing ones are not asked for.

    Args:
        stats: `q01`, `q99`: numbers by dimension; `mask`: booleans.
        name: What messages call them.

    Raises:
        ValueError: If one is no finite number, or a mask holds something else than booleans.
    """
    for key in stats.keys() & {"q01", "q99", "mask"}:
        if len(_list(f"{name}: {key}", stats[key])) > _MAX_NUMBERS:
            raise ValueError(f"{name}: {key} has {len(stats[key])} numbers; expected one per dimension.")
        for value in stats[key]:
            (flag if key == "mask" else finite)(f"{name}: {key}", value)


def finite(name: str, value: Any) -> float:
    """The value as a finite float; an integer of JSON may be too large for one.

    Raises:
        ValueError: If it is no finite number.
    """
    try:
        return real_number(name, value)
    except OverflowError as error:
        raise ValueError(f"{name}: a number of it is too large.") from error


def _check_text(text: Mapping[str, Any]) -> None:
    for key, maximum in _TEXT_MAXIMA.items():
        value = text.get(key)
        if key in text and not (value is None and key in _OPTIONAL):
            whole_number(f"text_config {key}", value, 0 if key in _TOKEN_IDS else 1, maximum)
    private = [key for key in text if key.startswith("_")]
    if private:  # such as "_attn_implementation", which can name code of the hub
        raise ValueError(f"text_config has {private[0]!r:.80}, which is no setting of a language model.")


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {_called(value)}.")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {_called(value)}.")
    return value


def _called(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:5]))}" if value else "an empty object"
    return "null" if value is None else f"a {type(value).__name__}"
