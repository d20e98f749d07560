"""The policy: a vision-language-action model behind SB3's actor-critic interface."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from libero_gym.checks import choice, did_you_mean, flag
from libero_gym.dimensions import CAMERA_KEYS, PRIVILEGED_KEY
from vla_agent.action_tokens import N_BINS
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.bins import bin_log_probs
from vla_agent.errors import NonFiniteError
from vla_agent.policy.arguments import check_policy
from vla_agent.policy.critic import ValueHead
from vla_agent.policy.distributions import (
    ActionTokenDistribution,
    Chain,
    bin_entropy,
    gather_bins,
)
from vla_agent.policy.lora import LoraSettings, add_lora, disable_adapter
from vla_agent.policy.precision import choose_types, warn_of_lost_steps


class Decision(NamedTuple):
    """What `VLAPolicy.act` draws. B observations, N action tokens."""

    actions: th.Tensor  # bins, int64 (B, N)
    values: th.Tensor  # float32 (B, 1)
    token_log_probs: th.Tensor  # float32 (B, N)
    value_inputs: th.Tensor  # float32 (B, D + K), what the value was read from


class Evaluation(NamedTuple):
    """How `VLAPolicy.score` judges given actions. B observations, N action tokens."""

    values: th.Tensor  # float32 (B, 1)
    token_log_probs: th.Tensor  # float32 (B, N), each given the earlier tokens
    token_entropies: th.Tensor  # float32 (B, N), in nats
    log_probs: th.Tensor  # float32 (B, N, 256), of every bin


class VLAPolicy(ActorCriticPolicy):
    """Actor and critic on one backbone: a forward pass gives the action tokens' scores and the value.

    Observations are a `Dict` with `image` (and `wrist_image`, `state` where the model reads them), `input_ids` and
    `attention_mask`, as `VLAVecEnv` gives them; actions are bins, `MultiDiscrete([256] * N)`. Images stay uint8 until
    the device, in height-width-channel order or as SB3 transposes them.

    Args:
        observation_space: See above.
        action_space: See above.
        lr_schedule: Learning rate; both parameter groups, "policy" and "value", start with it, and `VLAPPO` gives the
            second its own.
        model: "tiny", a checkpoint folder, a hub id, or a `VLABackbone`.
        temperature: Divides the logits, in rollouts and in scoring alike.
        top_k, top_p: Truncate each token's distribution to its likeliest bins, in rollouts and in scoring alike; see
            `bin_log_probs`. A bin that was drawn counts as inside in scoring.
        lora: Train adapters beside a frozen backbone instead of the backbone: settings of `LoraSettings`, {} for its
            defaults.
        value_hidden: Hidden layers of the value head.
        detach_value: Keep the value loss out of the backbone.
        frozen: Children of the backbone that are not trained, such as ("vision_backbone",).
        dtype: Type of the backbone's weights ("bfloat16", ...). By default float32 where all weights are trained, since
            small steps are lost in bfloat16, and on a CPU; bfloat16 with ``lora`` on a GPU.
        autocast: "bfloat16" computes in that type over float32 weights, in rollouts and updates alike; None in the
            weights' own. The default "auto" does so on a GPU, where neither ``dtype`` nor ``lora`` is given.
        device: Where the backbone is loaded to; `VLAPPO` gives its own.
        gradient_checkpointing: Recompute the backbone's blocks in the backward pass: slower, and much smaller.
        cuda_graphs: Replay decoding on a GPU as CUDA graphs, where the backbone can; results are the same.
        unnorm_key: Whose statistics normalise the robot's state, for a model that reads it.
        optimizer_class: Of the one optimizer that holds both parameter groups.
        optimizer_kwargs: Its arguments besides the learning rate; Adam gets eps=1e-5, as in SB3.
        use_sde: SB3 passes it to every policy; must be False.

    Raises:
        ValueError: If the model cannot serve the spaces, or an argument is out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: str | Path | VLABackbone = "tiny",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        lora: dict[str, Any] | None = None,
        value_hidden: Sequence[int] = (256,),
        detach_value: bool = False,
        frozen: Sequence[str] = (),
        dtype: str | th.dtype | None = None,
        autocast: str | th.dtype | None = "auto",
        device: th.device | str | None = None,
        gradient_checkpointing: bool = False,
        cuda_graphs: bool = True,
        unnorm_key: str | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        check_policy({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class == th.optim.Adam else {}
        check_spaces(observation_space, action_space)
        # Not ActorCriticPolicy's constructor: it would build an MLP and independent categoricals.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.use_sde = False
        self.detach_value = detach_value
        self.unnorm_key = unnorm_key
        self.backbone_frozen = False
        self.model_id = model if isinstance(model, str) else str(model) if isinstance(model, Path) else None
        chosen, autocast = choose_types(model, dtype, autocast, device, trains_all=lora is None)
        backbone = load_backbone(model, chosen, device)
        if autocast is not None:
            if not hasattr(backbone, "set_autocast"):
                raise ValueError(f"{type(backbone).__name__} has no autocast; leave it out.")
            backbone.set_autocast(autocast)
        if not cuda_graphs and hasattr(backbone, "set_cuda_graphs"):
            backbone.set_cuda_graphs(False)
        known = getattr(backbone.processor, "unnorm_keys", None)
        if unnorm_key is not None and known is not None:
            choice("unnorm_key", unnorm_key, known)
        check_fit(backbone, cast(spaces.Dict, observation_space), cast(spaces.MultiDiscrete, action_space))
        self._sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.action_dist = ActionTokenDistribution(backbone.n_action_tokens, **self._sampling)
        self.lora = None if lora is None else LoraSettings.from_dict(lora)
        self._build_networks(backbone, frozen, value_hidden, gradient_checkpointing)
        self._build_optimizer(lr_schedule)
        trained = (parameter for parameter in self._backbone.parameters() if parameter.requires_grad)
        warn_of_lost_steps(trained, "use dtype='float32' with autocast='bfloat16', or lora")

    @property
    def backbone(self) -> VLABackbone:
        """The vision-language-action model, with its adapters where there are any."""
        return cast(VLABackbone, self._backbone)

    @property
    def compute_dtype(self) -> th.dtype:
        """Type that the backbone computes in."""
        return getattr(self._backbone, "autocast_dtype", None) or next(self._backbone.parameters()).dtype

    @property
    def temperature(self) -> float:
        """Divides the logits, in rollouts and in scoring alike."""
        return float(self._sampling["temperature"])

    def act(self, obs: PyTorchObs, deterministic: bool = False) -> Decision:
        """Draws actions, and values them, in one prefill and a pass over a single token for each further one.

        Raises:
            NonFiniteError: If the model's scores are no finite numbers (on a GPU, torch itself ends the process).
        """
        prompt = self._model_inputs(obs)
        try:
            sample = self.backbone.sample_actions(**prompt, deterministic=deterministic, **self._sampling)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise NonFiniteError(
                "The model's scores of actions are not finite: its weights are not, or its type overflows. Load an "
                "earlier checkpoint, or use float32."
            ) from error
        actions = self._to_bins(sample.action_ids)
        log_probs = bin_log_probs(sample.logits, **self._sampling, drawn=actions)
        inputs = self._value_inputs(sample.hidden, obs)
        return Decision(actions, self.value_head(inputs), gather_bins(log_probs, actions), inputs)

    def score(self, obs: PyTorchObs, actions: th.Tensor) -> Evaluation:
        """Scores actions, and values observations, in one teacher-forced pass.

        Args:
            obs: Observations as tensors.
            actions: Bins (B, N) of any type; SB3's buffer hands them back as floats.
        """
        logits, hidden = self._forced_pass(obs, actions)
        log_probs = bin_log_probs(logits, **self._sampling, drawn=actions)
        values = self.value_head(self._value_inputs(hidden.detach() if self.detach_value else hidden, obs))
        return Evaluation(values, gather_bins(log_probs, actions), bin_entropy(log_probs), log_probs)

    def reference_log_probs(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Log-probabilities (B, N, 256) under the model without its adapters, along the given chains."""
        with th.no_grad(), self.disable_adapter():
            logits, _ = self._forced_pass(obs, actions)
        return bin_log_probs(logits, **self._sampling, drawn=actions)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Inside, the policy is the model that it started from.

        Raises:
            ValueError: If the policy has no adapters.
        """
        if self.lora is None:
            raise ValueError("The policy trains the model's own weights, so the one it started from is gone. Use lora.")
        return disable_adapter(self._backbone)

    # ----------------------------------------------------------------------------------- SB3's interface

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions (B, N), values (B, 1) and log-probabilities (B,)."""
        decision = self.act(obs, deterministic)
        return decision.actions, decision.values, decision.token_log_probs.sum(dim=1)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of actions (B, N)."""
        scores = self.score(obs, actions)
        return scores.values, scores.token_log_probs.sum(dim=1), scores.token_entropies.sum(dim=1)

    def get_distribution(self, obs: PyTorchObs) -> ActionTokenDistribution:
        """The distribution over action chains; it runs the model when it is sampled or asked for a probability."""
        prompt = self._model_inputs(obs)

        def draw(deterministic: bool) -> Chain:
            sample = self.backbone.sample_actions(**prompt, deterministic=deterministic, **self._sampling)
            return Chain(self._to_bins(sample.action_ids), sample.logits)

        distribution = ActionTokenDistribution(self.backbone.n_action_tokens, **self._sampling)
        return distribution.proba_distribution(draw=draw, score=lambda actions: self._forced_pass(obs, actions)[0])

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Values (B, 1)."""
        size = len(cast(dict[str, th.Tensor], obs)["input_ids"])
        # What the value is read from comes before the actions, so any will do.
        anything = th.zeros(size, self.backbone.n_action_tokens, dtype=th.int64, device=self.device)
        return self.value_head(self._value_inputs(self._forced_pass(obs, anything)[1], obs))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions of observations, with or without a batch dimension, as SB3's.

        Raises:
            ValueError: If the observations are not those of the policy's space.
        """
        flag("deterministic", deterministic)
        read = [*CAMERA_KEYS[: self.backbone.config.num_images], "input_ids", "attention_mask"]
        read += ["state"] if self.backbone.config.use_state else []
        check_observation(observation, cast(spaces.Dict, self.observation_space), read)
        return super().predict(observation, state, episode_start, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.act(observation, deterministic).actions

    def set_training_mode(self, mode: bool) -> None:
        """Training mode for the head alone: a ratio between two dropout masks would be no ratio."""
        self.train(mode)
        self._backbone.eval()

    def save(self, path: str) -> None:
        """Not offered: SB3 would pickle the weights."""
        raise NotImplementedError("A VLAPolicy is saved with its algorithm: VLAPPO.save(folder).")

    @classmethod
    def load(cls, path: str, device: th.device | str = "auto") -> Any:
        """Not offered: SB3 would unpickle the file, and whoever wrote it could run any code."""
        raise NotImplementedError("A VLAPolicy is loaded with its algorithm: VLAPPO.load(folder).policy.")

    # ------------------------------------------------------------------------------------------- private

    def _build_networks(
        self, backbone: VLABackbone, frozen: Sequence[str], value_hidden: Sequence[int], gradient_checkpointing: bool
    ) -> None:
        module = cast(nn.Module, backbone)
        unused = backbone.unused_parameter_names()
        children = [name for name, _ in module.named_children()]
        for name in frozen:
            if name not in children:
                raise ValueError(
                    f"frozen names {name!r}, which is no child of the backbone.{did_you_mean(name, children)} "
                    f"Children: {', '.join(children)}."
                )
        if self.lora is not None:
            add_lora(module, self.lora, unused)
        for name, parameter in module.named_parameters():
            if name in unused or name.split(".", 1)[0] in frozen:
                parameter.requires_grad_(False)
        if gradient_checkpointing:
            if not hasattr(backbone, "set_gradient_checkpointing"):
                raise ValueError(f"{type(backbone).__name__} has no gradient checkpointing; leave it out.")
            backbone.set_gradient_checkpointing(True)
        self._backbone = module
        known = cast(spaces.Dict, self.observation_space).spaces.get(PRIVILEGED_KEY)
        self._privileged_size = 0 if known is None else int(np.prod(cast(Any, known.shape)))
        head = ValueHead(backbone.hidden_size, value_hidden, self._privileged_size)
        self.value_head = head.to(backbone.action_token_ids.device)
        ids = backbone.action_token_ids
        bin_of_id = th.zeros(int(ids.max()) + 1, dtype=th.int64, device=ids.device)
        bin_of_id[ids] = th.arange(N_BINS, device=ids.device)
        self.register_buffer("_bin_of_id", bin_of_id, persistent=False)
        self._bin_of_id: th.Tensor

    def _build_optimizer(self, lr_schedule: Schedule) -> None:
        trained = [parameter for parameter in self._backbone.parameters() if parameter.requires_grad]
        groups = [
            {"params": trained, "name": "policy"},
            {"params": list(self.value_head.parameters()), "name": "value"},
        ]
        self.optimizer = self.optimizer_class(
            [group for group in groups if group["params"]],
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _forced_pass(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Logits (B, N, 256) and hidden states (B, D)."""
        ids = self.backbone.action_token_ids[actions.long()]
        with th.set_grad_enabled(th.is_grad_enabled() and not self.backbone_frozen):
            scores = self.backbone.score_actions(**self._model_inputs(obs), action_ids=ids, bins_only=True)
        return scores.logits, scores.hidden

    def _model_inputs(self, obs: PyTorchObs) -> dict[str, Any]:
        """The backbone's arguments of a batch of observations."""
        tensors = cast(dict[str, th.Tensor], obs)
        images = [to_channels_last(tensors[key]) for key in CAMERA_KEYS[: self.backbone.config.num_images]]
        prompt = tensors["input_ids"], tensors["attention_mask"]
        return model_inputs(self.backbone, *prompt, images, tensors.get("state"), self.unnorm_key)

    def _value_inputs(self, hidden: th.Tensor, obs: PyTorchObs) -> th.Tensor:
        """What the value head reads: hidden states (B, D), and what the critic knows beside them.

        Who only acts need not know it: where the observations lack it, it counts as 0, and the values mean nothing.
        """
        known = cast(dict[str, th.Tensor], obs).get(PRIVILEGED_KEY)
        if known is None:
            known = hidden.new_zeros(len(hidden), self._privileged_size)
        return th.cat([hidden.float(), known.float()], dim=1)

    def _to_bins(self, action_ids: th.Tensor) -> th.Tensor:
        return self._bin_of_id[action_ids]


def load_backbone(
    model: str | Path | VLABackbone, dtype: th.dtype | None, device: th.device | str | None
) -> VLABackbone:
    """The model itself, or the checkpoint of that name.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    if isinstance(model, (str, Path)):
        from vla_agent.openvla import OpenVLA  # brings transformers, which takes seconds

        return cast(VLABackbone, OpenVLA.from_pretrained(model, dtype=dtype, device=device))
    module = cast(nn.Module, model)
    module.to(device=device, dtype=dtype)
    return model


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Complains about spaces that no model could serve.

    Raises:
        ValueError: See the messages.
    """
    if not isinstance(action_space, spaces.MultiDiscrete):
        raise ValueError(
            f"VLAPolicy's actions are bins, MultiDiscrete([{N_BINS}] * N), but the environment has {action_space}. "
            "Make it with vla_agent.make_vec_env, which decodes bins."
        )
    if action_space.nvec.ndim != 1 or (action_space.nvec != N_BINS).any():
        raise ValueError(f"Every action dimension must have {N_BINS} bins, but the action space is {action_space}.")
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"VLAPolicy needs a Dict of observations, got {observation_space}. Use make_vec_env.")
    for key, space in observation_space.spaces.items():
        if isinstance(space, spaces.Text):
            raise ValueError(f"Observation '{key}' is text; VLAVecEnv replaces it by tokens. Use make_vec_env.")
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            raise ValueError(f"Observation '{key}' is nested, which SB3 does not support; flatten it.")
    missing = [key for key in ("image", "input_ids", "attention_mask") if key not in observation_space.spaces]
    if missing:
        raise ValueError(
            f"The observations lack {', '.join(missing)}; they have {', '.join(observation_space.spaces)}. "
            "Use make_vec_env, with a camera."
        )


def check_fit(backbone: VLABackbone, observation_space: spaces.Dict, action_space: spaces.MultiDiscrete) -> None:
    """Complains about spaces that this model cannot serve.

    Raises:
        ValueError: See the messages.
    """
    n_tokens = len(action_space.nvec)
    if n_tokens != backbone.n_action_tokens:
        raise ValueError(
            f"The model gives {backbone.n_action_tokens} action tokens, but the environment takes {n_tokens}; "
            "make it with the same model and chunk_size."
        )
    keys = list(CAMERA_KEYS[: backbone.config.num_images]) + (["state"] if backbone.config.use_state else [])
    missing = [key for key in keys if key not in observation_space.spaces]
    if missing:
        raise ValueError(f"The model reads {', '.join(missing)}, which the observations lack; add the camera or state.")
    size = backbone.processor.image_size
    for key in CAMERA_KEYS[: backbone.config.num_images]:
        space = observation_space[key]
        if space.shape not in ((size, size, 3), (3, size, size)) or space.dtype != np.uint8:
            raise ValueError(
                f"Observation '{key}' is {space.dtype} {space.shape}, but the model takes uint8 ({size}, {size}, 3); "
                "give make_vec_env the model, an image_size or an image_transform."
            )


def check_observation(observation: Any, space: spaces.Dict, read: Sequence[str]) -> None:
    """Complains about observations of another kind than the policy's.

    Args:
        observation: What `VLAPolicy.predict` was given.
        space: The policy's.
        read: Keys that the model needs; others may be left out, such as what only a critic knows.

    Raises:
        ValueError: It names the key, what was expected and what came.
    """
    if not isinstance(observation, dict):
        hint = " gymnasium's reset() gives a pair; take its first." if isinstance(observation, tuple) else ""
        raise ValueError(
            f"The observation is of type {type(observation).__name__}; expected a dict with {', '.join(read)}.{hint}"
        )
    missing = [key for key in read if key not in observation]
    if missing:
        raise ValueError(
            f"The observation lacks {', '.join(missing)}; it has {', '.join(map(str, observation)) or 'nothing'}. Give "
            "what VLAVecEnv's reset and step return."
        )
    sizes: dict[str, int | None] = {}
    for key, value in observation.items():
        if key not in space.spaces:
            raise ValueError(f"The policy knows no observation {key!r}; it knows {', '.join(space.spaces)}.")
        sizes[key] = _batch_size(key, np.asarray(value), cast(spaces.Box, space.spaces[key]))
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{key}: {'no batch' if size is None else size}" for key, size in sizes.items())
        raise ValueError(f"The observations differ in their batch ({shown}); give all of them the same.")


def _batch_size(key: str, values: np.ndarray, space: spaces.Box) -> int | None:
    """Length of the batch, None for a single observation."""
    shapes = [space.shape]
    if key in CAMERA_KEYS and space.shape[-1] != 3:  # SB3 turns them where the policy's have channels first
        shapes.append((*space.shape[1:], space.shape[0]))
    if not np.can_cast(values.dtype, space.dtype, "same_kind") or (
        values.shape not in shapes and values.shape[1:] not in shapes
    ):
        raise ValueError(
            f"The observation {key!r} is {values.dtype} {values.shape}; expected {space.dtype} {space.shape}, or a "
            f"batch (n, {', '.join(map(str, space.shape))})."
        )
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError(f"The observation {key!r} holds numbers that are not finite.")
    if values.shape in shapes:
        return None
    if not len(values):
        raise ValueError(f"The observation {key!r} is an empty batch; expected at least one.")
    return len(values)


def to_channels_last(images: th.Tensor) -> th.Tensor:
    """Images (B, H, W, 3) of either order."""
    return images if images.shape[-1] == 3 else images.permute(0, 2, 3, 1)
