"""The shape of a model and its statistics, as the published `config.json` writes them down."""

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libero_gym.common.checks import whole_number
from libero_gym.common.json_files import read_json
from libero_gym.dimensions import ACTION_DIM
from vla_agent.action_tokens import N_BINS
from vla_agent.openvla.config_checks import check_depth, check_fields

if TYPE_CHECKING:
    from transformers import LlamaConfig

KNOWN_TOWERS: dict[str, dict[str, int]] = {
    # timm's vit_large and so400m ("shape-optimised") definitions.
    "vit_large_patch14_reg4_dinov2.lvd142m": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "vit_so400m_patch14_siglip_224": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    "vit_so400m_patch14_siglip_384": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
}

EMPTY_PIECE_ID = 29871
"""Llama-2's id of the lone word boundary, which training leaves between `Out:` and the first action token."""

# Keys of config.json that this project adds; a published file lacks them and their defaults describe it.
_OWN_KEYS = (
    "vision_tower_sizes",
    "action_chunk_size",
    "decoding",
    "action_head",
    "num_images",
    "use_state",
    "learned_placeholders",
    "empty_piece_id",
    "prompt_word",
    "prompt_style",
)


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer; `from_timm_id` reads its kind off the published name."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    image_size: int
    patch_size: int
    n_registers: int
    is_dinov2: bool

    @property
    def n_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_timm_id(cls, timm_id: str, image_size: int, sizes: Mapping[str, int] | None = None) -> "TowerConfig":
        """The tower that `timm_id` names, at `image_size` pixels, with `sizes` in place of the published ones.

        Raises:
            ValueError: If the id is unknown and no sizes are given, or sizes are incomplete or do not divide.
        """
        if sizes is None:
            if timm_id not in KNOWN_TOWERS:
                known = ", ".join(KNOWN_TOWERS)
                raise ValueError(
                    f"Unknown vision tower '{timm_id}'. Known: {known}. Give others' sizes as 'vision_tower_sizes'."
                )
            sizes = KNOWN_TOWERS[timm_id]
        missing = [key for key in ("embed_dim", "depth", "num_heads") if key not in sizes]
        if missing:
            raise ValueError(f"'vision_tower_sizes' of '{timm_id}' lacks {', '.join(missing)}.")
        patch, registers = re.search(r"patch(\d{1,4})", timm_id), re.search(r"reg(\d{1,2})", timm_id)
        tower = cls(
            embed_dim=sizes["embed_dim"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            mlp_dim=sizes.get("mlp_dim", 4 * sizes["embed_dim"]),
            image_size=image_size,
            patch_size=whole_number(f"patch size of '{timm_id:.80}'", int(patch[1]), 1, 256) if patch else 14,
            n_registers=int(registers[1]) if registers else 0,
            is_dinov2="dinov2" in timm_id,
        )
        if not tower.is_dinov2 and "siglip" not in timm_id:
            raise ValueError(
                f"Vision tower '{timm_id}' is neither a DINOv2 nor a SigLIP; only these two are supported."
            )
        if tower.embed_dim % tower.num_heads or image_size % tower.patch_size:
            raise ValueError(
                f"Vision tower '{timm_id}': embed_dim={tower.embed_dim} must be divisible by num_heads="
                f"{tower.num_heads}, and the image size {image_size} by the patch size {tower.patch_size}."
            )
        return tower


@dataclass
class OpenVLAConfig:
    """Everything `config.json` says; keys this class does not know are kept in `extra` and written back.

    Attributes:
        timm_model_ids: Names of the vision towers; DINOv2 first if there are two.
        image_sizes: Input side of each tower in pixels.
        text_config: Arguments of `transformers.LlamaConfig`; what it leaves out keeps that class's defaults (such as
            rms_norm_eps 1e-6, which is not Llama-2's), because the published weights were trained so.
        norm_stats: Statistics per data set: `{unnorm_key: {"action": {"q01", "q99", "mask", ...}, ...}}`.
        pad_to_multiple_of: Rows that pad the embedding beyond the tokenizer's vocabulary.
        vision_tower_sizes: Sizes per tower, if they differ from those that its name implies.
        action_chunk_size: Consecutive actions that the model decides at a time.
        decoding: "autoregressive", one token after the other as published, or "parallel", all in one pass (OFT).
        action_head: "l1" for a head that regresses actions instead of speaking action tokens (OFT), for evaluation; or
            None.
        num_images: Cameras of one observation.
        use_state: Whether a token with the robot's state follows the image tokens.
        learned_placeholders: Whether the positions that parallel decoding predicts from have embeddings of their own.
            OFT's are zero, and only rotary positions tell them apart; small models have too few layers for that.
        empty_piece_id: Token that must end every prompt.
        prompt_word: Word behind the instruction of every prompt, for a model that was taught what well done means by
            advantage-tagged cloning.
        prompt_style: "v01" for the prompt of the v0.1 checkpoints, "plain" for that of all later ones, or "" where the
            checkpoint's name tells it, as in the published code.
    """

    timm_model_ids: list[str]
    image_sizes: list[int]
    text_config: dict[str, Any]
    norm_stats: dict[str, Any] = field(default_factory=dict)
    n_action_bins: int = N_BINS
    pad_to_multiple_of: int = 64
    pad_token_id: int = 32000
    use_fused_vision_backbone: bool = True
    vision_tower_sizes: list[dict[str, int]] | None = None
    action_chunk_size: int = 1
    decoding: str = "autoregressive"
    action_head: str | None = None
    num_images: int = 1
    use_state: bool = False
    learned_placeholders: bool = False
    empty_piece_id: int = EMPTY_PIECE_ID
    prompt_word: str = ""
    prompt_style: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(vars(self))
        n_towers = 2 if self.use_fused_vision_backbone else 1
        sizes = self.vision_tower_sizes
        if len(self.timm_model_ids) != n_towers or len(self.image_sizes) != n_towers:
            raise ValueError(
                f"use_fused_vision_backbone={self.use_fused_vision_backbone} needs {n_towers} timm_model_ids and "
                f"image_sizes, got {self.timm_model_ids} and {self.image_sizes}."
            )
        if sizes is not None and len(sizes) != n_towers:
            raise ValueError(f"'vision_tower_sizes' must describe {n_towers} towers, got {len(sizes)}.")
        if len({(size // tower.patch_size) for size, tower in zip(self.image_sizes, self.towers, strict=True)}) > 1:
            raise ValueError(f"The towers see different numbers of patches: image_sizes {self.image_sizes}.")
        if self.n_action_bins != N_BINS:
            raise ValueError(f"n_action_bins must be {N_BINS}, got {self.n_action_bins}.")
        if self.decoding not in ("autoregressive", "parallel"):
            raise ValueError(f"decoding must be 'autoregressive' or 'parallel', got '{self.decoding}'.")
        if self.action_head not in (None, "l1"):
            raise ValueError(f"action_head must be 'l1' or null, got '{self.action_head}'.")
        if self.action_head == "l1" and self.decoding != "parallel":
            raise ValueError("action_head 'l1' reads all action tokens at once: it needs decoding 'parallel'.")
        if self.learned_placeholders and self.decoding != "parallel":
            raise ValueError("learned_placeholders are part of parallel decoding: they need decoding 'parallel'.")
        if self.vocab_size < self.n_action_bins:
            raise ValueError(f"The vocabulary has {self.vocab_size} entries; {N_BINS} action tokens do not fit.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "OpenVLAConfig":
        """Builds the configuration from the content of a `config.json`.

        Raises:
            ValueError: If it describes another kind of model or lacks what OpenVLA needs.
        """
        check_depth("config.json", data)
        kind = data.get("model_type", "openvla")
        if kind not in ("openvla", "prismatic"):
            raise ValueError(f"The checkpoint's model_type is '{kind}', but 'openvla' is needed; choose another one.")
        missing = [key for key in ("timm_model_ids", "image_sizes", "text_config") if key not in data]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}, so it does not describe an OpenVLA model.")
        text = data["text_config"]
        text_type = text.get("model_type", "llama") if isinstance(text, dict) else "llama"  # `check_fields` refuses it
        if text_type != "llama":
            raise ValueError(f"The checkpoint's language model is '{text_type}', but only 'llama' is supported.")
        known = {key: copy.deepcopy(data[key]) for key in cls.__dataclass_fields__ if key in data and key != "extra"}
        known["norm_stats"] = known.get("norm_stats") or {}
        extra = {key: copy.deepcopy(value) for key, value in data.items() if key not in cls.__dataclass_fields__}
        return cls(**known, extra=extra)

    @classmethod
    def from_json(cls, path: Path) -> "OpenVLAConfig":
        """Reads a `config.json`.

        Raises:
            ValueError: As `from_dict`, or if the file is no JSON object.
        """
        return cls.from_dict(read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """Content for a `config.json`; the project's own keys appear only where they differ from the published."""
        own_defaults = {key: self.__dataclass_fields__[key].default for key in _OWN_KEYS}
        known = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "extra"}
        known = {key: value for key, value in known.items() if key not in own_defaults or value != own_defaults[key]}
        return copy.deepcopy({"model_type": "openvla", **self.extra, **known})

    @property
    def towers(self) -> list[TowerConfig]:
        """Resolved vision towers, in order."""
        sizes = self.vision_tower_sizes or itertools.repeat(None, len(self.timm_model_ids))
        return [
            TowerConfig.from_timm_id(name, size, given)
            for name, size, given in zip(self.timm_model_ids, self.image_sizes, sizes, strict=True)
        ]

    @property
    def llama(self) -> "LlamaConfig":
        """Language model configuration with its defaults filled in.

        Raises:
            ValueError: If `text_config` is none of a Llama.
        """
        from transformers import LlamaConfig

        try:
            return LlamaConfig(**{**self.text_config, "attn_implementation": "sdpa"})
        except Exception as error:  # its validators have types of their own
            raise ValueError(f"text_config describes no Llama ({error!r:.300}).") from error

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary, 32000 as published; the last 256 are the action tokens."""
        padded = self.text_config.get("vocab_size", 32000)  # LlamaConfig's own default
        return int(padded) - self.pad_to_multiple_of

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.image_sizes[0]

    @property
    def n_patches(self) -> int:
        """Image tokens of one observation, all cameras together."""
        return self.towers[0].n_patches * self.num_images

    @property
    def n_observation_tokens(self) -> int:
        """Tokens between BOS and the text: image tokens, and the state's if the model reads it."""
        return self.n_patches + int(self.use_state)

    @property
    def n_action_tokens(self) -> int:
        """Tokens of one action chunk."""
        return ACTION_DIM * self.action_chunk_size

    @property
    def bos_token_id(self) -> int:
        """First token of every prompt."""
        return int(self.text_config.get("bos_token_id", 1))

    @property
    def eos_token_id(self) -> int:
        """Token that stops a sequence."""
        return int(self.text_config.get("eos_token_id", 2))
