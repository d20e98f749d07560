"""What the agent asks of a vision-language-action model, such as `vla_agent.openvla.OpenVLA`."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch as th


class Scores(Protocol):
    """Scores of given action tokens."""

    @property
    def logits(self) -> th.Tensor:
        """Shape (B, N, 256), by bin: each token's, the earlier ones given."""

    @property
    def hidden(self) -> th.Tensor:
        """Shape (B, D): what the first action token is predicted from."""


class Samples(Scores, Protocol):
    """Drawn action tokens and the scores they were drawn from, before the temperature."""

    @property
    def action_ids(self) -> th.Tensor:
        """Token ids, int64 (B, N)."""


class BackboneConfig(Protocol):
    """Which observations the model reads."""

    @property
    def num_images(self) -> int:
        """1 for the agent's view, 2 for the wrist camera's as well."""

    @property
    def use_state(self) -> bool:
        """Whether it reads the robot's state."""


class BackboneProcessor(Protocol):
    """What a model knows besides its weights."""

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""

    def normalize_state(self, state: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Robot states (B, 8) as the model wants them."""

    def fingerprint(self) -> str:
        """Equal for two processors that write the same prompts and decode bins to the same actions."""


class VLABackbone(Protocol):
    """A `torch.nn.Module` that draws and scores action tokens: B observations, L prompt tokens, N action tokens.

    Token id ``action_token_ids[b]`` stands for bin b of 256.
    """

    n_action_tokens: int
    hidden_size: int

    @property
    def config(self) -> BackboneConfig: ...

    @property
    def processor(self) -> BackboneProcessor: ...

    @property
    def action_token_ids(self) -> th.Tensor: ...

    def preprocess(self, *images: Any) -> th.Tensor:
        """Pixel values of uint8 images (B, H, W, 3), one array per camera."""

    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        deterministic: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Samples:
        """Draws actions, without gradients, each token from `vla_agent.bins.bin_log_probs`."""

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        action_ids: th.Tensor,
        *,
        state: th.Tensor | None = None,
        bins_only: bool = False,
    ) -> Scores:
        """Scores actions (B, N) in one pass; the policy always asks for ``bins_only``."""

    def unused_parameter_names(self) -> list[str]:
        """Parameters that no output depends on."""


def model_inputs(
    model: VLABackbone,
    input_ids: th.Tensor,
    attention_mask: th.Tensor,
    images: Sequence[Any],
    state: np.ndarray | th.Tensor | None,
    unnorm_key: str | None,
) -> dict[str, Any]:
    """The arguments that a model's calls share, of a batch of observations.

    Args:
        model: The model.
        input_ids: Prompts, int64 (B, L), where the model is.
        attention_mask: Of the prompts, int64 (B, L).
        images: uint8 (B, H, W, 3), one array or tensor per camera that the model reads.
        state: The robots' states, (B, 8); used only by a model that reads them.
        unnorm_key: Whose statistics normalise the states.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": model.preprocess(*images)}
    if model.config.use_state:
        values = state.cpu().numpy() if isinstance(state, th.Tensor) else np.asarray(state)
        normalized = model.processor.normalize_state(values, unnorm_key)
        inputs["state"] = th.from_numpy(np.asarray(normalized)).to(input_ids.device)
    return inputs
