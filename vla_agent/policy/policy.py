"""The policy: a vision-language-action model behind SB3's actor-critic interface."""

from __future__ import annotations

import dataclasses
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

from libero_gym.common.checks import choice, did_you_mean, flag
from libero_gym.dimensions import CAMERA_KEYS, PRIVILEGED_KEY
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.bins import Sampling, bin_entropy, gather_bins
from vla_agent.common.errors import NonFiniteError
from vla_agent.policy.arguments import check_policy
from vla_agent.policy.averaging import averaged, keep_average
from vla_agent.policy.checks import check_fit, check_observation, check_spaces, observation_keys
from vla_agent.policy.critic import ValueHead
from vla_agent.policy.distributions import ActionTokenDistribution, Chain
from vla_agent.policy.loading import load_backbone
from vla_agent.policy.lora import LoraSettings, add_lora, disable_adapter
from vla_agent.policy.precision import choose_types, warn_of_lost_steps


class Decision(NamedTuple):
    """What `VLAPolicy.act` draws. B observations, N action tokens."""

    actions: th.Tensor  # bins, int64 (B, N)
    values: th.Tensor  # float32 (B, 1)
    token_log_probs: th.Tensor  # float32 (B, N)
    value_inputs: th.Tensor  # float32 (B, D + K), what the value was read from


class ActionScores(NamedTuple):
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
        lr_schedule: Schedule of the learning rate. Both parameter groups, "policy" and "value", start with it; `VLAPPO`
            then gives the second its own.
        model: The name of a model that ships ("tiny", "tiny-libero"), a checkpoint folder, a hub id, or a backbone.
        temperature: Divides the logits, in rollouts and in scoring alike.
        top_k, top_p: Truncate each token's distribution to its likeliest bins, in rollouts and in scoring alike; see
            `bin_log_probs`. A bin that was drawn counts as inside in scoring.
        lora: Train adapters instead of the backbone, which is frozen: settings of `LoraSettings`, {} for its defaults.
        value_hidden: Hidden layers of the value head.
        detach_value: Keep the value loss out of the backbone.
        frozen: Children of the backbone that are not trained, such as ("vision_backbone",).
        dtype: Type of the backbone's weights. By default float32 where all are trained, since bfloat16 loses small
            steps, and on a CPU; bfloat16 with ``lora`` on a GPU.
        autocast: "bfloat16" computes in that type over float32 weights, in rollouts and updates alike; None in the
            weights' own. The default "auto" does so on a GPU, where neither ``dtype`` nor ``lora`` is given.
        device: Where the backbone is loaded to; `VLAPPO` gives its own.
        gradient_checkpointing: Recompute the backbone's blocks in the backward pass: slower, and much smaller.
        cuda_graphs: Replay decoding on a GPU as CUDA graphs, if the backbone can; results are the same.
        unnorm_key: Name of the statistics that normalise the robot's state, for a model that reads it.
        average_decay: Share that a step keeps of the weights' moving average, which `averaged` acts with; 0: none.
        optimizer_class: Class of the one optimizer that holds both parameter groups.
        optimizer_kwargs: Arguments of the optimizer besides the learning rate; Adam gets eps=1e-5, as in SB3.
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
        average_decay: float = 0.0,
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
        if not backbone.abilities.speaks_bins:
            raise ValueError(
                f"This {type(backbone).__name__} neither draws nor scores bins (its actions are continuous), so "
                "there is no policy to train: evaluate it with Evaluator, or give a model that speaks action tokens."
            )
        if autocast is not None:
            if not backbone.abilities.autocast:
                raise ValueError(f"{type(backbone).__name__} has no autocast; leave it out.")
            backbone.set_autocast(autocast)
        if not cuda_graphs and backbone.abilities.cuda_graphs:
            backbone.set_cuda_graphs(False)
        if unnorm_key is not None:
            choice("unnorm_key", unnorm_key, backbone.processor.unnorm_keys)
        check_fit(backbone, cast(spaces.Dict, observation_space), cast(spaces.MultiDiscrete, action_space))
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.action_dist = ActionTokenDistribution(backbone.n_action_tokens, self.sampling)
        self.lora = None if lora is None else LoraSettings.from_dict(lora)
        self._build_networks(backbone, frozen, value_hidden, gradient_checkpointing)
        self.average_decay = average_decay
        self._build_optimizer(lr_schedule)
        trained = (parameter for parameter in self._backbone.parameters() if parameter.requires_grad)
        warn_of_lost_steps(trained, "use dtype='float32' with autocast='bfloat16', or lora")

    @property
    def backbone(self) -> VLABackbone:
        """The vision-language-action model, with its adapters if there are any."""
        return cast(VLABackbone, self._backbone)

    @property
    def compute_dtype(self) -> th.dtype:
        """Type that the backbone computes in."""
        computed = self.backbone.autocast_dtype if self.backbone.abilities.autocast else None
        return computed or next(self._backbone.parameters()).dtype

    @property
    def temperature(self) -> float:
        """Divisor of the logits, in rollouts and in scoring alike."""
        return self.sampling.temperature

    def act(self, obs: PyTorchObs, deterministic: bool = False) -> Decision:
        """Draws actions, and values the observations, from the same passes through the model.

        Raises:
            NonFiniteError: If the model's scores are no finite numbers.
        """
        prompt = self.backbone_inputs(obs)
        try:
            sample = self.backbone.sample_actions(**prompt, sampling=self._draws(deterministic))
        except FloatingPointError as error:
            raise NonFiniteError(
                "The model's scores of actions are not finite: its weights are not, or its type overflows. Load an "
                "earlier checkpoint, or use float32."
            ) from error
        log_probs = self.sampling.log_probs(sample.logits, drawn=sample.bins)
        inputs = self._value_inputs(sample.hidden, obs)
        return Decision(sample.bins, self.value_head(inputs), gather_bins(log_probs, sample.bins), inputs)

    def score(self, obs: PyTorchObs, actions: th.Tensor) -> ActionScores:
        """Scores actions, and values observations, in one teacher-forced pass.

        Args:
            obs: Observations as tensors.
            actions: Bins (B, N) of any type; SB3's buffer hands them back as floats.
        """
        logits, hidden = self._forced_pass(obs, actions)
        log_probs = self.sampling.log_probs(logits, drawn=actions)
        values = self.value_head(self._value_inputs(hidden.detach() if self.detach_value else hidden, obs))
        return ActionScores(values, gather_bins(log_probs, actions), bin_entropy(log_probs), log_probs)

    def reference_log_probs(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Log-probabilities (B, N, 256) under the model without its adapters, along the given chains."""
        with th.no_grad(), self.disable_adapter():
            logits, _ = self._forced_pass(obs, actions)
        return self.sampling.log_probs(logits, drawn=actions)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Inside, the policy is the model that it started from.

        Raises:
            ValueError: If the policy has no adapters.
        """
        if self.lora is None:
            raise ValueError("The policy trains the model's own weights, so the one it started from is gone. Use lora.")
        return disable_adapter(self._backbone)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy is its moving average; without ``average_decay`` it is what it is."""
        return averaged(self.optimizer)

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
        prompt = self.backbone_inputs(obs)

        def draw(deterministic: bool) -> Chain:
            sample = self.backbone.sample_actions(**prompt, sampling=self._draws(deterministic))
            return Chain(sample.bins, sample.logits)

        distribution = ActionTokenDistribution(self.backbone.n_action_tokens, self.sampling)
        return distribution.proba_distribution(draw=draw, score=lambda actions: self._forced_pass(obs, actions)[0])

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Values (B, 1)."""
        return self.value_head(self._value_inputs(self.extract_features(obs), obs))

    def extract_features(self, obs: PyTorchObs, features_extractor: Any = None) -> th.Tensor:
        """Hidden states (B, D) that the first action token is predicted from; no extractor is asked."""
        with self._backbone_gradients():
            return self.backbone.encode_observations(**self.backbone_inputs(obs))

    def reset_noise(self, n_envs: int = 1) -> None:
        """Not offered: bins are drawn from the model's own scores."""
        raise NotImplementedError("A VLAPolicy has no noise to reset: it explores by drawing bins, not by gSDE.")

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
        read = [*observation_keys(self.backbone), "input_ids", "attention_mask"]
        check_observation(observation, cast(spaces.Dict, self.observation_space), read)
        return super().predict(observation, state, episode_start, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.act(observation, deterministic).actions

    def set_training_mode(self, mode: bool) -> None:
        """Sets the mode of the value head alone.

        The backbone stays in evaluation mode: between two dropout masks, PPO's probability ratio would mean nothing.
        """
        self.train(mode)
        self._backbone.eval()

    def save(self, path: str) -> None:
        """Not offered: SB3 would pickle the weights."""
        raise NotImplementedError("A VLAPolicy is saved with its algorithm: VLAPPO.save(folder).")

    @classmethod
    def load(cls, path: str, device: th.device | str = "auto") -> Any:
        """Not offered: SB3 would unpickle the file, and whoever wrote it could run any code."""
        raise NotImplementedError("A VLAPolicy is loaded with its algorithm: VLAPPO.load(folder).policy.")

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Not offered: they would hold the model, whose weights SB3 would pickle."""
        raise NotImplementedError(
            "A VLAPolicy's arguments are kept with its algorithm, as policy_kwargs: VLAPPO.save(folder)."
        )

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
            if not backbone.abilities.gradient_checkpointing:
                raise ValueError(f"{type(backbone).__name__} has no gradient checkpointing; leave it out.")
            backbone.set_gradient_checkpointing(True)
        self._backbone = module
        known = cast(spaces.Dict, self.observation_space).spaces.get(PRIVILEGED_KEY)
        self._privileged_size = 0 if known is None else int(np.prod(cast(Any, known.shape)))
        head = ValueHead(backbone.hidden_size, value_hidden, self._privileged_size)
        self.value_head = head.to(backbone.device)

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
        keep_average(self.optimizer, trained, self.average_decay)

    def _forced_pass(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Logits (B, N, 256) and hidden states (B, D)."""
        with self._backbone_gradients():
            scores = self.backbone.score_actions(**self.backbone_inputs(obs), bins=actions.long())
        return scores.logits, scores.hidden

    def _backbone_gradients(self) -> AbstractContextManager[Any]:
        return th.set_grad_enabled(th.is_grad_enabled() and not self.backbone_frozen)

    def _draws(self, deterministic: bool) -> Sampling:
        return dataclasses.replace(self.sampling, deterministic=deterministic)

    def backbone_inputs(self, obs: PyTorchObs, backbone: VLABackbone | None = None) -> dict[str, Any]:
        """The arguments of a backbone, the policy's own by default, of a batch of observations."""
        tensors, model = cast(dict[str, th.Tensor], obs), backbone or self.backbone
        images = [to_channels_last(tensors[key]) for key in CAMERA_KEYS[: model.config.num_images]]
        prompt = tensors["input_ids"], tensors["attention_mask"]
        return model_inputs(model, *prompt, images, tensors.get("state"), self.unnorm_key)

    def _value_inputs(self, hidden: th.Tensor, obs: PyTorchObs) -> th.Tensor:
        """What the value head reads, float32 (B, D + K): hidden states, and numbers that the critic alone knows.

        Observations without these numbers serve to act: they count as 0 then, and the values mean nothing.
        """
        known = cast(dict[str, th.Tensor], obs).get(PRIVILEGED_KEY)
        if known is None:
            known = hidden.new_zeros(len(hidden), self._privileged_size)
        return th.cat([hidden.float(), known.float()], dim=1)


def to_channels_last(images: th.Tensor) -> th.Tensor:
    """Images (B, H, W, 3) of either order."""
    return images if images.shape[-1] == 3 else images.permute(0, 2, 3, 1)
