"""A convolutional scorer of a few MB that trains on a laptop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from libero_gym.common.checks import flag, sequence, whole_number
from vla_agent.process_reward.interface import CAMERA, RewardModelError, check_frames, warn_of_unseen
from vla_agent.process_reward.storage import check_weights, digest, read_config, read_weights, write_scorer

# The key in scorer.json of scorers whose fingerprint is of their configuration, too.
_TELLS_CONFIG = "fingerprint_of_config"


@dataclasses.dataclass(frozen=True)
class ScorerConfig:
    """The frames and instructions that a `TinyScorer` is for, and its size.

    Attributes:
        instructions: Instructions that it was trained on; it can tell their words apart and no others.
        image_size: Side of its frames in pixels.
        camera: Observation key of its frames.
        channels: Channels of the stages; each stage halves the resolution.
        feature_dim: Width of a frame's features.
        word_dim: Width of an instruction's embedding.
    """

    instructions: tuple[str, ...]
    image_size: int
    camera: str = CAMERA
    channels: tuple[int, ...] = (32, 64, 128, 128)
    feature_dim: int = 128
    word_dim: int = 64

    def __post_init__(self) -> None:
        for instruction in sequence("instructions", self.instructions):
            if not isinstance(instruction, str):
                raise ValueError(f"instructions must be strings, got {instruction!r:.80}.")
            if not split_words(instruction):
                raise ValueError(f"The instruction {instruction!r:.80} has no words, so it is told from no other.")
        whole_number("image_size", self.image_size, 1, 4096)
        if not isinstance(self.camera, str):
            raise ValueError(f"camera={self.camera!r:.80}; expected the name of an observation.")
        if not 1 <= len(sequence("channels", self.channels)) <= 12:
            raise ValueError(f"channels must be those of 1 to 12 stages, got {len(self.channels)}.")
        for width in self.channels:
            if whole_number("channels", width, 8, 4096) % 8:
                raise ValueError(f"channels must be multiples of 8, got {width}.")
        whole_number("feature_dim", self.feature_dim, 1, 2**16)
        whole_number("word_dim", self.word_dim, 1, 2**16)


class TinyScorer(nn.Module):
    """Scores frames by a small residual network, whose features an instruction scales and shifts (FiLM).

    An instruction is encoded as the mean of its words' and word pairs' embeddings; words that were not in the training
    instructions are left out. The instruction enters behind the vision layers, so that a frame's features are computed
    once for all instructions (Perez et al., 2018, "FiLM: Visual Reasoning with a General Conditioning Layer").

    Args:
        config: Its frames, instructions and size.

    Non-obvious behaviours: a folder whose scorer.json lacks ``fingerprint_of_config`` is an older one, and its scorer
    keeps the fingerprint that saved runs have noted, that of its weights alone.
    """

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self._tells_config = True
        self._index = {token: index for index, token in enumerate(_vocabulary(config))}
        self._warned: set[str] = set()
        widths = (config.channels[0], *config.channels)
        side = -(-config.image_size // 2 ** (1 + len(config.channels)))
        stages = [_Stage(width_in, width) for width_in, width in itertools.pairwise(widths)]
        self.vision = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, stride=2, padding=2),
            *stages,
            nn.Flatten(),
            nn.LayerNorm(widths[-1] * side * side),
            nn.Linear(widths[-1] * side * side, config.feature_dim),
        )
        self.embedding = nn.Parameter(th.randn(len(self._index), config.word_dim))
        self.film = nn.Linear(config.word_dim, 2 * config.feature_dim)
        self.head = nn.Sequential(
            nn.GELU(), nn.Linear(config.feature_dim, config.feature_dim), nn.GELU(), nn.Linear(config.feature_dim, 1)
        )

    @property
    def image_size(self) -> int:
        """Side of the frames that it takes, in pixels."""
        return self.config.image_size

    @property
    def camera(self) -> str:
        """Observation key of the frames that it takes."""
        return self.config.camera

    def forward(self, images: th.Tensor, words: th.Tensor) -> th.Tensor:
        """Logits (B,) of images uint8 (B, H, W, 3) and `encode`d instructions (B, V)."""
        return self.logits(self.features(images), words)

    def features(self, images: th.Tensor) -> th.Tensor:
        """Features (B, F) of images uint8 (B, H, W, 3)."""
        return self.vision(images.permute(0, 3, 1, 2).to(self.embedding.dtype) / 127.5 - 1.0)

    def logits(self, features: th.Tensor, words: th.Tensor) -> th.Tensor:
        """Logits (...) of features (..., F) under `encode`d instructions (..., V)."""
        scale, shift = self.film(words @ self.embedding).chunk(2, dim=-1)
        return self.head(features * (1 + scale) + shift).squeeze(-1)

    def encode(self, instructions: Sequence[str]) -> th.Tensor:
        """Instructions as shares of the vocabulary's words, float32 (B, V).

        Warns once of each instruction that the scorer was not trained on.
        """
        warn_of_unseen(instructions, self.config.instructions, self._warned)
        words = th.zeros(len(instructions), len(self._index))
        for row, instruction in enumerate(instructions):
            known = [self._index[token] for token in _tokens(instruction) if token in self._index]
            for index in known:
                words[row, index] += 1 / len(known)
        return words.to(self.embedding.device)

    @th.no_grad()
    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], float32 (n,), of images uint8 (n, H, W, 3) under n instructions.

        Raises:
            RewardModelError: If the images have another type or size, or the instructions are no n strings.
        """
        check_frames(images, instructions, self.image_size)
        pixels = th.from_numpy(np.array(images))  # a copy: what comes may be read-only
        logits = self(pixels.to(self.embedding.device), self.encode(instructions))
        return th.sigmoid(logits).cpu().numpy()

    def fingerprint(self) -> str:
        """Short hash of its weights and its configuration."""
        about = json.dumps(dataclasses.asdict(self.config), sort_keys=True) if self._tells_config else ""
        return digest(self.state_dict(), about)

    def save(self, folder: str | Path) -> None:
        """Write configuration and weights to a folder, completely or not at all; only a scorer's folder is replaced."""
        about = {"class": type(self).__name__, **dataclasses.asdict(self.config)}
        write_scorer(folder, about | ({_TELLS_CONFIG: True} if self._tells_config else {}), self.state_dict())

    @classmethod
    def load(cls, folder: str | Path, device: Any = "cpu") -> TinyScorer:
        """Load the scorer that `save` wrote.

        Raises:
            RewardModelError: If it is incomplete or damaged.
        """
        folder = Path(folder)
        fields = {key: value for key, value in read_config(folder).items() if key != "class"}
        tells_config = fields.pop(_TELLS_CONFIG, False)
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        try:
            with th.device("meta"):  # nothing is allocated before the file's own tensors have the same shapes
                scorer = cls(ScorerConfig(**(fields | lists)))
                scorer._tells_config = flag(_TELLS_CONFIG, tells_config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardModelError(f"The scorer in '{folder}' is incomplete or damaged: {error}") from error
        tensors = read_weights(folder)
        check_weights(folder, tensors, scorer.state_dict())
        scorer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        return scorer.to(device).eval()


class _Stage(nn.Module):
    """A residual block at half the resolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = self.down(F.gelu(x))
        return x + self.conv(F.gelu(self.norm(x)))


def split_words(instruction: str) -> list[str]:
    """An instruction's words in lower case."""
    return re.findall(r"[^\W_]+", instruction.lower())


def _tokens(instruction: str) -> list[str]:
    """Words, and pairs of neighbours: "on the stove" is not "the stove on"."""
    words = split_words(instruction)
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def _vocabulary(config: ScorerConfig) -> list[str]:
    return sorted({token for instruction in config.instructions for token in _tokens(instruction)})
