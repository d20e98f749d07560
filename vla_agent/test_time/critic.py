"""A critic of whole chunks: how likely an episode succeeds, and how soon, if a candidate is executed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from libero_gym.common.checks import real_number, sequence, whole_number
from libero_gym.common.json_files import read_json
from vla_agent.action_tokens import N_BINS
from vla_agent.backbone import VLABackbone
from vla_agent.common.atomic import Kind, save_tensors, writing
from vla_agent.common.hashes import hash_weights
from vla_agent.policy.checks import observation_keys
from vla_agent.test_time.scorers import CandidatePolicy, Question, ScorerError, candidate_policy

CONFIG_FILE, WEIGHTS_FILE = "critic.json", "critic.safetensors"
CRITIC = Kind("saved critic", (CONFIG_FILE, WEIGHTS_FILE), ("training.json",))
# A critic that somebody sent makes no more modules than this.
MAX_HEADS, MAX_LAYERS = 64, 16


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """What a `ChunkCritic` is for, and its size.

    Attributes:
        backbone: Hash of the weights whose hidden states it reads; see `describe_backbone`.
        observations: Observation keys that this backbone reads.
        hidden_size: Width of its hidden states.
        n_action_tokens: Tokens of a chunk.
        gamma: Discount per decision that its values were trained with.
        widths: Hidden layers of each head.
        n_heads: Heads; the lowest is the answer.
    """

    backbone: str
    observations: tuple[str, ...]
    hidden_size: int
    n_action_tokens: int
    gamma: float = 0.95
    widths: tuple[int, ...] = (256, 256)
    n_heads: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str):
            raise ValueError(f"backbone={self.backbone!r:.80}; expected the hash of a backbone's weights.")
        for key in sequence("observations", self.observations):
            if not isinstance(key, str):
                raise ValueError(f"observations must be keys, got {key!r:.80}.")
        for name in ("hidden_size", "n_action_tokens"):
            whole_number(name, getattr(self, name), 1, 2**20)
        whole_number("n_heads", self.n_heads, 1, MAX_HEADS)
        widths = sequence("widths", self.widths)
        whole_number("The number of widths", len(widths), 0, MAX_LAYERS)
        for width in widths:
            whole_number("widths", width, 1, 2**16)
        real_number("gamma", self.gamma, 0, 1)

    @classmethod
    def of(cls, policy: CandidatePolicy, **settings: Any) -> CriticConfig:
        """The configuration of a critic for a policy's backbone; ``settings`` are further fields."""
        return cls(**describe_backbone(policy.backbone), **settings)


def describe_backbone(backbone: VLABackbone) -> dict[str, Any]:
    """Fields of a `CriticConfig` that say which backbone a critic is for."""
    module: Any = backbone
    return {
        "backbone": hash_weights(module.state_dict())[:16],
        "observations": tuple(observation_keys(backbone)),
        "hidden_size": backbone.hidden_size,
        "n_action_tokens": backbone.n_action_tokens,
    }


class ChunkCritic(nn.Module):
    """Q(observation, chunk): the discounted success to expect if the chunk is executed, in [0, 1].

    It reads the frozen backbone's hidden state, from which the first action token is predicted, and the chunk's
    normalised actions. The lowest of several heads is the answer, so that chunks which no head has seen do not look
    good by chance. `vla_agent.test_time.critic_training` trains it (after VGAS, Xu et al., arXiv 2602.07399).

    Args:
        config: What it is for, and its size.
    """

    name, is_oracle = "critic", False

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.ModuleList(_head(config) for _ in range(config.n_heads))

    def forward(self, hidden: th.Tensor, chunks: th.Tensor) -> th.Tensor:
        """Logits of Q by head, float32 (H, ...), of hidden states (..., D) and normalised actions (..., N)."""
        read = th.cat([self.norm(hidden.float()), chunks], dim=-1)
        return th.stack([head(read).squeeze(-1) for head in self.heads])

    @th.no_grad()
    def score(self, question: Question) -> th.Tensor:
        """Q of each candidate, float64 (B, n)."""
        candidates = question.candidates
        hidden = candidates.hidden[:, None].expand(-1, candidates.bins.shape[1], -1)
        # In float64, where a value close to 1 still differs from a closer one.
        return self(hidden, normalized(candidates.bins)).amin(0).double().sigmoid()

    @property
    def weights_hash(self) -> str:
        """Short hash of the weights, by which reports tell critics apart."""
        return hash_weights(self.state_dict())[:16]

    def save(self, folder: str | Path) -> None:
        """Write configuration and weights to a folder, completely or not at all; only a critic's folder is replaced.

        Raises:
            FileExistsError: If something else than a critic is there.
            OSError: If it cannot be written.
        """
        with writing(folder, CRITIC) as temporary:
            text = json.dumps(dataclasses.asdict(self.config), indent=1) + "\n"
            (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")
            save_tensors(self.state_dict(), temporary / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: str | Path, model: Any) -> ChunkCritic:
        """The critic that `save` wrote, for a policy whose backbone it was trained on.

        Args:
            folder: Its folder.
            model: The policy, or a learner with one.

        Raises:
            ScorerError: If there is none, it is damaged, or it was trained for another backbone, other cameras or
                another chunk.
        """
        policy, path = candidate_policy(model), Path(folder).expanduser()
        if not (path / CONFIG_FILE).is_file():
            raise ScorerError(f"There is no critic at '{folder}'; give a folder with {CONFIG_FILE}, of train-critic.")
        fields = read_json(path / CONFIG_FILE, error=ScorerError)
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        try:
            config = CriticConfig(**(fields | lists))
            check_backbone(config, policy, f"The critic in '{folder}'")
            with th.device("meta"):  # nothing is allocated before the file's own tensors have the same shapes
                critic = cls(config)
            critic.load_state_dict(load_file(path / WEIGHTS_FILE), assign=True)
        except ScorerError:
            raise
        except (TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise ScorerError(f"The critic in '{folder}' is incomplete or damaged: {error}") from error
        return critic.float().to(policy.backbone.device).eval()


def check_backbone(config: CriticConfig, policy: CandidatePolicy, what: str) -> None:
    """Complains about a critic, or decisions, of another backbone than a policy's.

    Args:
        config: Of the critic.
        policy: The policy.
        what: What the sentence is about.

    Raises:
        ScorerError: It says what differs.
    """
    own = CriticConfig.of(policy)
    if config.observations != own.observations:
        raise ScorerError(
            f"{what} reads {', '.join(config.observations)}, and the policy's model {', '.join(own.observations)}; "
            "train one for this model."
        )
    for name, words in (("n_action_tokens", "chunks of {} tokens"), ("hidden_size", "hidden states of width {}")):
        of_critic, of_policy = getattr(config, name), getattr(own, name)
        if of_critic != of_policy:
            raise ScorerError(
                f"{what} is for {words.format(of_critic)}, and the policy's model has {words.format(of_policy)}; "
                "train one for this model."
            )
    if config.backbone != own.backbone:
        raise ScorerError(
            f"{what} was trained on the hidden states of other weights ({config.backbone}) than the policy's "
            f"({own.backbone}); train one for these, or act with those."
        )


def normalized(bins: th.Tensor | np.ndarray) -> th.Tensor:
    """The centres of bins as normalised actions, float32 in [-1, 1], of the bins' shape."""
    return (th.as_tensor(bins).float() + 0.5) * (2 / N_BINS) - 1


def _head(config: CriticConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = config.hidden_size + config.n_action_tokens
    for wider in config.widths:
        layers += [nn.Linear(width, wider), nn.GELU()]
        width = wider
    return nn.Sequential(*layers, nn.Linear(width, 1))
