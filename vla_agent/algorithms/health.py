"""What shows that an update is sound: the first ratio, the critic's spread, entropies, gradient norms."""

import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch as th

from vla_agent.common.errors import NonFiniteError

ACTION_DIM_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

# Mean |ratio - 1| that rounding explains. Sampling decodes token by token with cached keys, and scoring takes one pass:
# they round differently, in bfloat16 by some hundredths of a nat per token.
RATIO_TOLERANCE = {th.float64: 1e-6, th.float32: 1e-3, th.bfloat16: 0.3, th.float16: 0.1}
# A critic whose values spread less than this share of the returns' spread says the same everywhere.
CONSTANT_CRITIC = 1e-4
# This many skipped steps in a row are no accident.
MAX_SKIPPED = 3
# Number of weights of each tensor that show whether it moved: of 7e9, a few million are enough.
WEIGHTS_WATCHED = 1024


class RatioError(RuntimeError):
    """Before any update, the learner gives the rollout's actions other probabilities than the sampler did."""


class UpdateLog:
    """Collects tensors during an update, and reads them from the device once, at its end."""

    def __init__(self) -> None:
        self._values: dict[str, list[th.Tensor]] = defaultdict(list)

    def add(self, name: str, value: th.Tensor) -> None:
        """Add a number to the metric of this name under ``train/``."""
        self._values[name].append(value.detach())

    def restart(self, name: str) -> None:
        """Forget the numbers of a metric."""
        self._values.pop(name, None)

    def means(self) -> dict[str, float]:
        """Mean of each metric."""
        if not self._values:
            return {}
        means = [th.stack(values).float().mean() for values in self._values.values()]
        # What is computed from the buffer's arrays is on the host, and the losses are where the policy is.
        device = next((mean.device for mean in means if mean.device.type != "cpu"), means[0].device)
        together = th.stack([mean.to(device) for mean in means])
        return dict(zip(self._values, together.tolist(), strict=True))

    def last(self, name: str) -> float:
        """The newest value of a metric; this waits for the device."""
        return self._values[name][-1].item()


class Stopwatch:
    """Seconds spent per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start


@contextmanager
def advice_on_memory() -> Iterator[None]:
    """Add to an out-of-memory error of the GPU what an update can do with less."""
    try:
        yield
    except th.OutOfMemoryError as error:
        error.add_note(
            "An update needs less memory with a larger gradient_accumulation_steps (the same result), policy_kwargs "
            "gradient_checkpointing=True (slower), lora={...} instead of the model's own weights, or "
            "frozen=('vision_backbone',)."
        )
        raise


def ratio_tolerance(dtype: th.dtype) -> float:
    """Mean |ratio - 1| that rounding explains in passes of this type."""
    return RATIO_TOLERANCE.get(dtype, RATIO_TOLERANCE[th.float32])


class UpdateMonitor:
    """Warns, once per kind, if the numbers of an update mean that something is broken.

    Args:
        tolerance: Largest mean |ratio - 1| before the first step that counts as rounding.
        strict: Whether a first ratio beyond it is an error: for policies that are known to sample and score alike.
    """

    def __init__(self, tolerance: float, *, strict: bool) -> None:
        self.tolerance = tolerance
        self.strict = strict
        self._warned: set[str] = set()
        self._skipped_in_a_row = 0
        self._weights = th.empty(0)
        self._has_moved = False

    def is_finite(self, loss: th.Tensor, grad_norm: th.Tensor) -> bool:
        """Whether a minibatch's step may be taken; this waits for the device.

        Args:
            loss: Loss of the minibatch, a scalar.
            grad_norm: Norm of all gradients, a scalar.

        Raises:
            NonFiniteError: If the answer is no for the `MAX_SKIPPED`-th time in a row.
        """
        if bool(th.isfinite(loss) & th.isfinite(grad_norm)):
            self._skipped_in_a_row = 0
            return True
        self._skipped_in_a_row += 1
        what = f"loss {loss.item():g} and gradient norm {grad_norm.item():g}"
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise NonFiniteError(
                f"{MAX_SKIPPED} minibatches in a row gave a loss or a gradient that is not finite, the last {what}. "
                "Their steps were not taken, so the weights are those before them. Look for NaN in rewards and "
                "observations, lower the learning rate, or use float32."
            )
        self._warn_once("not finite", f"A minibatch gave {what}; its step is skipped, and counted as skipped_steps.")
        return False

    def check_first_ratio(self, error: float, gap: float) -> None:
        """Before the first step, the ratio of new to old probability must be one.

        Args:
            error: Mean |ratio - 1| over the first minibatch.
            gap: Mean of log_prob - old_log_prob over it.

        Raises:
            RatioError: If it is not one, and the monitor is strict.
        """
        if error <= self.tolerance:
            return
        message = (
            f"Before the first step of this update the mean |ratio - 1| is {error:.3g} (mean log-probability gap "
            f"{gap:.3g}); expected at most {self.tolerance:.3g}. Sampling and scoring differ: another temperature, "
            "dropout or batch normalisation in training mode, weights changed since the rollout, actions altered in "
            "the buffer, or padding that shifts positions. If it is rounding, raise ratio_tolerance."
        )
        if self.strict:
            raise RatioError(message)
        self._warn_once("first ratio", message)

    def check_critic(
        self, values: np.ndarray, returns: np.ndarray, observations: np.ndarray | dict[str, np.ndarray]
    ) -> None:
        """Warns if a critic gives every observation the same value, though observations and returns differ.

        Args:
            values: Values of a rollout, (n,).
            returns: Returns of a rollout, (n,).
            observations: Observations of a rollout, (n, ...).
        """
        spread = float(returns.std())
        if spread > 0 and float(values.std()) <= CONSTANT_CRITIC * spread and _vary(observations):
            self._warn_once(
                "critic",
                f"The critic gives every observation the same value ({values.mean():.3g}), though returns spread by "
                f"{spread:.3g}: it does not see the observation, or does not learn.",
            )

    def check_trainable(self, module: th.nn.Module, optimizer: th.optim.Optimizer) -> None:
        """Warns before training if the optimizer holds no weight that the policy acts with.

        Args:
            module: The policy.
            optimizer: Its optimizer; the parameter group "value" does not count.
        """
        owned = {parameter for parameter in module.parameters() if parameter.requires_grad}
        if not owned.intersection(_policy_weights(optimizer)):
            self._warn_once(
                "nothing to train",
                "The policy has no weight that is trained, so it will not learn; at most its value head will. All of "
                "the backbone is frozen, or merge_lora removed the adapters: leave out some of policy_kwargs "
                "'frozen', or load the run again instead of training what was merged.",
            )

    def watch(self, optimizer: th.optim.Optimizer) -> None:
        """Remembers the policy's weights before an update."""
        self._weights = _sample(_policy_weights(optimizer))

    def check_policy_moves(self, metrics: dict[str, float], optimizer: th.optim.Optimizer) -> None:
        """Warns if the policy's weights or the ratio did not move in an update with gradients.

        The ratio alone does not tell: sampling and scoring round differently, so it is never exactly one.

        Args:
            metrics: Means over the update; if they have no norm of gradients, no step was taken.
            optimizer: The optimizer that `watch` was given.
        """
        had_gradients = metrics.get("grad_norm_policy", metrics.get("grad_norm", 0.0)) > 0
        weights = _sample(_policy_weights(optimizer))
        if not had_gradients or not len(weights):
            return  # without rewards there is nothing to learn; without weights `check_trainable` has warned
        rate = next(group["lr"] for group in optimizer.param_groups if group.get("name") != "value")
        if th.equal(weights, self._weights):
            if rate > 0 or not self._has_moved:  # a schedule may well end at 0
                self._warn_once(
                    "frozen weights",
                    f"The policy's weights did not move in a whole update, though they had gradients; the learning "
                    f"rate is {rate:g}. Give a learning_rate above 0, and weights of a type in which its steps are not "
                    "lost (float32).",
                )
            return
        self._has_moved = True
        if metrics.get("ratio_deviation") == 0:
            self._warn_once(
                "frozen ratio",
                "The ratio of new to old probability stayed exactly one during the whole update though the weights "
                "moved, so that clipping did nothing: the old log-probabilities follow the new ones.",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=5)


def _policy_weights(optimizer: th.optim.Optimizer) -> list[th.nn.Parameter]:
    """The weights that the optimizer changes, without the value head of a `VLAPolicy`."""
    return [p for group in optimizer.param_groups if group.get("name") != "value" for p in group["params"]]


def _sample(parameters: Iterable[th.nn.Parameter]) -> th.Tensor:
    """Copies of a few weights of each tensor, or of this rank's share, evenly spread over it; shape (n,)."""
    parts = []
    for parameter in parameters:
        own = parameter.detach()
        flat = (cast(Any, own).to_local() if is_shared(own) else own).flatten()
        parts.append(flat[:: max(1, len(flat) // WEIGHTS_WATCHED)].float())
    return th.cat(parts).clone() if parts else th.empty(0)


def _vary(observations: np.ndarray | dict[str, np.ndarray]) -> bool:
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return any(bool((part != part[0]).any()) for part in parts)


def entropy_by_dim(token_entropies: th.Tensor) -> dict[str, th.Tensor]:
    """Mean entropy of each action dimension, in nats, of token entropies (B, 7 * chunk); {} for other widths."""
    n_dims = len(ACTION_DIM_NAMES)
    if token_entropies.shape[1] % n_dims:
        return {}
    means = token_entropies.detach().mean(dim=0).view(-1, n_dims).mean(dim=0)
    return {f"entropy_{name}": mean for name, mean in zip(ACTION_DIM_NAMES, means, strict=True)}


def gradients(parameters: Iterable[th.nn.Parameter]) -> list[th.Tensor]:
    """The gradients that there are, in the order of the parameters."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradient_norms(optimizer: th.optim.Optimizer) -> dict[str, th.Tensor]:
    """2-norm of the gradients of each named parameter group, before clipping."""
    norms = {}
    for group in optimizer.param_groups:
        own = gradients(group["params"])
        if "name" in group and own:
            norms[f"grad_norm_{group['name']}"] = whole(th.nn.utils.get_total_norm(own))
    return norms


def clip_gradients(parameters: Iterable[th.nn.Parameter], max_norm: float) -> th.Tensor:
    """`torch.nn.utils.clip_grad_norm_`, also where ranks hold shares of some gradients; the norm before clipping."""
    parameters = list(parameters)
    kinds = [[p for p in parameters if p.grad is not None and is_shared(p) == shared] for shared in (False, True)]
    if not kinds[1]:
        return th.nn.utils.clip_grad_norm_(parameters, max_norm)
    norms = [whole(th.nn.utils.get_total_norm(gradients(kind))) for kind in kinds if kind]
    norm = th.linalg.vector_norm(th.stack(norms))
    for kind in kinds:
        th.nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm


def is_shared(tensor: th.Tensor) -> bool:
    """Whether this rank holds a share of the tensor, as `torch.distributed.tensor.DTensor`."""
    return hasattr(tensor, "to_local")


def whole(tensor: th.Tensor) -> th.Tensor:
    """The tensor of which this rank may hold a share; all ranks have to ask."""
    return cast(Any, tensor).full_tensor() if is_shared(tensor) else tensor
