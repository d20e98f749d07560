"""Supervised fine-tuning: behaviour cloning of demonstrations by the loss of the next action token.

data = ActionChunks(LeRobotReader("data/spatial"), image_size=model.processor.image_size)
trainer = SupervisedTrainer(model, data, n_steps=10_000)
trainer.train(progress_bar=True)
trainer.export().save_pretrained("checkpoint")
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from libero_gym.checks import did_you_mean, real_number, whole_number
from vla_agent.action_tokens import bin_centers, to_bins
from vla_agent.atomic import Kind, save_tensors, writing
from vla_agent.augmentation import Augmentation
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.openvla import OpenVLA
from vla_agent.policy.lora import LoraSettings, add_lora, merge_lora
from vla_agent.policy.precision import warn_of_lost_steps
from vla_agent.runs.run_files import FolderFiles, read_json, read_tensors
from vla_agent.sft.data import ActionChunks, Examples

logger = logging.getLogger(__name__)

STATE_FILE, TENSORS_FILE = "trainer.json", "trainer.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
TRAINER = Kind("checkpoint of a fine-tuning", (STATE_FILE, TENSORS_FILE))


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message says at which step."""


@dataclass(frozen=True)
class SFTSettings:
    """How to train. The defaults are for fine-tuning a published model; the tiny one learns from scratch with others.

    Attributes:
        n_steps: Optimizer steps.
        batch_size: Examples per step.
        micro_batch_size: Examples per forward pass, None for all at once; the gradient is the same.
        learning_rate: Highest; reached after the warm-up, and brought to a hundredth along a cosine.
        warmup_steps: Steps of linear increase.
        weight_decay: AdamW's, of matrices.
        max_grad_norm: Gradients are scaled down to this norm.
        bin_sigma: Width in bins of a Gaussian that takes the place of the one right token: neighbouring bins are nearly
            right, and small models learn faster when told so. 0 for the plain next-token loss.
        keyframe_coef: Weight of an auxiliary loss: where the hand will be when the gripper's command next changes,
            regressed from what the first action token is predicted from. Its head is thrown away.
        ema_decay: Of an average of the weights, which is what is exported; 0 for none.
        validation_share: Share of the episodes that is not trained on.
        seed: Of batches and augmentation.
    """

    n_steps: int = 50_000
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bin_sigma: float = 0.0
    keyframe_coef: float = 0.0
    ema_decay: float = 0.0
    validation_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            whole_number(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            whole_number(name, getattr(self, name), 0)
        for name in ("learning_rate", "max_grad_norm"):
            real_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "bin_sigma", "keyframe_coef"):
            real_number(name, getattr(self, name), 0)
        for name in ("ema_decay", "validation_share"):
            if real_number(name, getattr(self, name), 0) >= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range; expected a number of 0 to below 1.")
        if self.micro_batch_size is not None:
            micro = whole_number("micro_batch_size", self.micro_batch_size, 1)
            if self.batch_size % micro:
                raise ValueError(f"micro_batch_size={micro} does not divide batch_size={self.batch_size}.")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SFTSettings:
        """Settings of a dictionary.

        Raises:
            ValueError: If it has another key, or a value is out of range.
        """
        for name in settings:
            if name not in cls.__dataclass_fields__:
                guess = did_you_mean(name, cls.__dataclass_fields__)
                raise ValueError(f"Unknown setting {name!r}.{guess} Settings: {', '.join(cls.__dataclass_fields__)}.")
        return cls(**settings)


class Metrics(NamedTuple):
    """Of one batch, over its valid actions.

    Attributes:
        loss: Cross-entropy of the action tokens in nats (against smoothed targets where there are such).
        token_accuracy: Share of tokens whose likeliest bin is the right one.
        l1_error: Mean distance of the likeliest bin's value from the target's, in normalised units (of 2 in all).
        keyframe_error: Distance of the keyframe from where the auxiliary head takes it to be, m; 0 without one.
    """

    loss: float
    token_accuracy: float
    l1_error: float
    keyframe_error: float


class SupervisedTrainer:
    """Trains a model on demonstrations; stopping and resuming changes nothing, to the bit on a CPU.

    Args:
        model: The model, on its device. It gets the data's statistics under ``unnorm_key``.
        data: What it learns.
        unnorm_key: Name of the data's statistics in the checkpoint.
        statistics: Statistics to use instead of the data's own, such as the checkpoint's.
        lora: Train adapters instead of all weights; settings of `LoraSettings`.
        augmentation: Of the images.
        **settings: Of `SFTSettings`.

    Raises:
        ValueError: If data and model do not fit, or a setting is out of range.
    """

    def __init__(
        self,
        model: OpenVLA,
        data: ActionChunks,
        *,
        unnorm_key: str = "libero",
        statistics: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        augmentation: Augmentation | None = None,
        **settings: Any,
    ) -> None:
        self.settings = SFTSettings.from_dict(settings)
        _check_arguments(model, data, unnorm_key, statistics, lora, augmentation)
        check_fit(model, data, statistics)
        self.statistics = data.statistics() if statistics is None else statistics
        self.model, self.data, self.unnorm_key = model, data, unnorm_key
        self.augmentation = augmentation
        self.lora = None if lora is None else LoraSettings.from_dict(lora)
        self.step = 0
        model.config.norm_stats = {unnorm_key: self.statistics}
        unused = model.unused_parameter_names()
        if self.lora is not None:
            add_lora(model, self.lora, unused)
        for name, parameter in model.named_parameters():
            if name in unused:
                parameter.requires_grad_(False)
        self._keyframe_head = _keyframe_head(model, self.settings)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._trained |= {f"keyframe_head.{name}": p for name, p in self._keyframe_head.named_parameters()}
        warn_of_lost_steps(self._trained.values(), "load the model with dtype=torch.float32, or give lora")
        self._average = (
            {name: p.detach().clone() for name, p in self._trained.items()} if self.settings.ema_decay else {}
        )
        matrices = [p for p in self._trained.values() if p.ndim > 1]
        others = [p for p in self._trained.values() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = th.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.99))
        self._targets = bin_targets(self.settings.bin_sigma).to(model.device)
        self._centers = th.from_numpy(bin_centers()).float().to(model.device)
        n_held_out = int(data.n_episodes * self.settings.validation_share)
        order = np.random.default_rng(self.settings.seed).permutation(data.n_episodes)
        held_out = np.isin(data.episode_ids, order[:n_held_out])
        self.train_frames, self.validation_frames = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def train(
        self,
        n_steps: int | None = None,
        *,
        callback: Callable[[int, Metrics], None] | None = None,
        progress_bar: bool = False,
    ) -> Metrics | None:
        """Train on to the end, or for so many steps.

        Args:
            n_steps: Steps from now; None for all that are left.
            callback: Called after each step with its number, from 1, and its metrics.
            progress_bar: Show steps and their rate, on a terminal.

        Returns:
            Metrics of the last step; None if none was left.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite. The weights are those before that step.
        """
        end = self.settings.n_steps
        if n_steps is not None:
            end = min(self.step + whole_number("n_steps", n_steps, 0), end)
        metrics = None
        bar = tqdm(
            total=end, initial=self.step, unit="step", desc="fine-tuning", disable=None if progress_bar else True
        )
        self.model.train()
        try:
            with bar:
                while self.step < end:
                    metrics = self._train_step()
                    bar.set_postfix(loss=f"{metrics.loss:.3f}", accuracy=f"{metrics.token_accuracy:.2f}", refresh=False)
                    bar.update()
                    if callback is not None:
                        callback(self.step, metrics)
        finally:
            self.model.eval()
        return metrics

    @th.no_grad()
    def validate(self, max_examples: int = 512) -> Metrics | None:
        """Metrics of held-out episodes, of the weights as they are trained; None if no episode is held out."""
        whole_number("max_examples", max_examples, 1)
        if not len(self.validation_frames):
            return None
        chosen = np.linspace(0, len(self.validation_frames) - 1, min(max_examples, len(self.validation_frames)))
        frames = np.unique(self.validation_frames[chosen.round().astype(int)])
        size = self.settings.micro_batch_size or self.settings.batch_size
        parts = [frames[start : start + size] for start in range(0, len(frames), size)]
        results = [self._losses(self.data[part], None)[1] for part in parts]
        return Metrics(*np.average([list(result) for result in results], axis=0, weights=[len(p) for p in parts]))

    def export(self) -> OpenVLA:
        """A model to save or evaluate: averaged weights where there is an average, adapters merged, a copy."""
        average = self._average
        current = {name: self._trained[name].detach().clone() for name in average}
        self._write(average)
        try:
            model = copy.deepcopy(self.model)
        finally:
            self._write(current)
        if self.lora is not None:
            merge_lora(model)
        return model.requires_grad_(True).eval()

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | Path) -> None:
        """Write all that resuming needs, in one rename; an interruption leaves the folder as it was.

        Raises:
            FileExistsError: If something else than such a checkpoint is there.
            OSError: If it cannot be written.
        """
        with writing(folder, TRAINER) as temporary:
            save_tensors(self._tensors(), temporary / TENSORS_FILE)
            document = {"step": self.step, "identity": self._identity()}
            (temporary / STATE_FILE).write_text(json.dumps(document, indent=1) + "\n")

    def load(self, folder: str | Path) -> None:
        """Go on from `save`.

        Raises:
            ValueError: If there is no such checkpoint, it is damaged, or it belongs to another model, other data or
                other settings; the message lists what differs.
        """
        folder = Path(folder)
        if not (folder / STATE_FILE).is_file() or not (folder / TENSORS_FILE).is_file():
            raise ValueError(
                f"'{folder}' is no checkpoint of a fine-tuning: {STATE_FILE} or {TENSORS_FILE} is missing."
            )
        files = FolderFiles(folder)
        saved = read_json(files, STATE_FILE, {"step": range(2**62), "identity": {}})
        now, before = self._identity(), saved["identity"]
        changed = [f"{key} {before.get(key)!r} to {now[key]!r}" for key in now if now[key] != before.get(key)]
        if changed:
            raise ValueError(f"'{folder}' was trained otherwise ({', '.join(changed)}); resume with the same.")
        tensors = read_tensors(files, TENSORS_FILE)
        self._check_tensors(folder, tensors)
        self._write({name: tensors[f"weights|{name}"] for name in self._trained})
        for name in self._average:
            self._average[name].copy_(tensors[f"average|{name}"])
        for name, parameter in self._trained.items():
            if f"exp_avg|{name}" in tensors:
                moments = {key: tensors[f"{key}|{name}"].to(parameter.device) for key in _MOMENTS}
                self.optimizer.state[parameter] = {"step": th.tensor(float(saved["step"])), **moments}
        self.step = int(saved["step"])

    def _check_tensors(self, folder: Path, tensors: dict[str, th.Tensor]) -> None:
        """Refuses tensors that are not those which `_tensors` gives, before any is copied."""
        shapes = {f"weights|{name}": parameter.shape for name, parameter in self._trained.items()}
        shapes |= {f"average|{name}": tensor.shape for name, tensor in self._average.items()}
        for name, parameter in self._trained.items():
            if any(f"{key}|{name}" in tensors for key in _MOMENTS):
                shapes |= {f"{key}|{name}": parameter.shape for key in _MOMENTS}
        wrong = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
        if wrong:
            raise ValueError(
                f"'{folder / TENSORS_FILE}' is damaged, or of another model: {', '.join(wrong[:3])} is missing or has "
                "another shape."
            )

    def _tensors(self) -> dict[str, th.Tensor]:
        tensors = {f"weights|{name}": parameter.detach() for name, parameter in self._trained.items()}
        tensors |= {f"average|{name}": tensor for name, tensor in self._average.items()}
        for name, parameter in self._trained.items():
            for key in _MOMENTS:
                if key in self.optimizer.state[parameter]:
                    tensors[f"{key}|{name}"] = self.optimizer.state[parameter][key]
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before."""
        settings = dataclasses.asdict(self.settings)
        return {
            **settings,
            "augmentation": None if self.augmentation is None else dataclasses.asdict(self.augmentation),
            "lora": None if self.lora is None else dataclasses.asdict(self.lora),
            "examples": len(self.data),
            "vocab_size": self.model.config.vocab_size,
            "fingerprint": self.model.processor.fingerprint(),
        }

    @th.no_grad()
    def _write(self, weights: dict[str, th.Tensor]) -> None:
        for name, tensor in weights.items():
            self._trained[name].copy_(tensor)

    # ----------------------------------------------------------------------------------------------------- one step

    def _train_step(self) -> Metrics:
        """One optimizer step; its randomness depends on the seed and the step's number alone."""
        settings = self.settings
        frames = self._batch_frames(self.step)
        generator = th.Generator(self.model.device).manual_seed(1_000_003 * settings.seed + self.step)
        size = settings.micro_batch_size or settings.batch_size
        results = []
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(frames), size):
            loss, metrics = self._losses(self.data[frames[start : start + size]], generator)
            (loss * size / len(frames)).backward()
            results.append(metrics)
        mean = Metrics(*np.mean(results, axis=0))
        norm = nn.utils.clip_grad_norm_(list(self._trained.values()), settings.max_grad_norm)
        if not (math.isfinite(mean.loss) and math.isfinite(float(norm))):
            raise NonFiniteLossError(
                f"Loss {mean.loss} with gradient norm {float(norm)} at step {self.step + 1}; the weights are those "
                "before it. Lower the learning rate, or look at the data."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, settings)
        self.optimizer.step()
        self.step += 1
        # Early weights are forgotten faster, so that the average does not drag the start along.
        decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
        with th.no_grad():
            for name, average in self._average.items():
                average.lerp_(self._trained[name], 1 - decay)
        return mean

    def _batch_frames(self, step: int) -> np.ndarray:
        """Frames of a step's batch: permutations of all of them, one behind the other."""
        size, n_frames = self.settings.batch_size, len(self.train_frames)
        positions = np.arange(step * size, (step + 1) * size)
        frames = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // n_frames):
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.train_frames)
            chosen = positions // n_frames == epoch
            frames[chosen] = order[positions[chosen] % n_frames]
        return frames

    def _losses(self, examples: Examples, generator: th.Generator | None) -> tuple[th.Tensor, Metrics]:
        """Loss of some examples, augmented if there is a generator, and metrics."""
        model, device = self.model, self.model.device
        bins = to_bins(examples.actions, self.statistics["action"])
        targets = th.from_numpy(bins.reshape(len(bins), -1)).to(device)
        weights = th.from_numpy(np.repeat(examples.valid, examples.actions.shape[2], axis=1)).float().to(device)
        with th.autocast(device.type, dtype=th.bfloat16, enabled=device.type == "cuda"):
            scores = model.score_actions(**self._inputs(examples, generator), bins=targets)
        log_probs = scores.logits.float().log_softmax(-1)
        per_token = -(self._targets[targets] * log_probs).sum(-1)
        loss = (per_token * weights).sum() / weights.sum()
        likeliest = log_probs.argmax(-1)
        accuracy = ((likeliest == targets) * weights).sum() / weights.sum()
        error = ((self._centers[likeliest] - self._centers[targets]).abs() * weights).sum() / weights.sum()
        total, distance = loss, th.zeros(())
        if self.settings.keyframe_coef:
            aim = th.from_numpy(self._normalized_position(examples.keyframe)).to(device)
            guess = self._keyframe_head(scores.hidden.float())
            total = loss + self.settings.keyframe_coef * F.mse_loss(guess, aim)
            distance = ((guess - aim).detach() * self._position_scale.to(device)).norm(dim=1).mean()
        values = th.stack([loss.detach(), accuracy, error, distance.to(device)]).tolist()
        return total, Metrics(*values)

    def _inputs(self, examples: Examples, generator: th.Generator | None) -> dict[str, Any]:
        """The model's arguments."""
        model = self.model
        images = [th.from_numpy(frames).to(model.device) for frames in examples.images]
        if generator is not None and self.augmentation is not None:
            images = [self.augmentation(frames, generator) for frames in images]
        prompt = model.tokenize(examples.instructions)
        return model_inputs(cast(VLABackbone, model), *prompt, images, examples.state, self.unnorm_key)

    def _normalized_position(self, position: np.ndarray) -> np.ndarray:
        """Positions in m as multiples of their spread in the data, float32."""
        stats = self.statistics["proprio"]
        return ((position - stats["mean"][:3]) / (np.asarray(stats["std"][:3]) + 1e-8)).astype(np.float32)

    @property
    def _position_scale(self) -> th.Tensor:
        return th.tensor(self.statistics["proprio"]["std"][:3])


def bin_targets(sigma: float, n_bins: int = 256) -> th.Tensor:
    """What each right bin asks of the distribution over all bins, float32 (n_bins, n_bins), rows sum to one.

    Args:
        sigma: Width of a Gaussian around the right bin, in bins; 0 for the right bin alone.
        n_bins: Number of bins.
    """
    if real_number("bin_sigma", sigma, 0) == 0:
        return th.eye(n_bins)
    distance = th.arange(n_bins)[:, None] - th.arange(n_bins)
    return th.softmax(-0.5 * (distance / sigma) ** 2, dim=1)


def learning_rate_at(step: int, settings: SFTSettings) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine down to a hundredth."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    done = max(0, step - settings.warmup_steps) / max(1, settings.n_steps - settings.warmup_steps)
    return settings.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def check_fit(model: OpenVLA, data: ActionChunks, statistics: dict[str, Any] | None, max_clipped: float = 0.25) -> None:
    """Complain about data that the model cannot learn from.

    Args:
        model: The model.
        data: The data.
        statistics: Statistics that the user gives; None for the data's own, which fit however few the frames are.
        max_clipped: Share of the data that may lie outside of given statistics.

    Raises:
        ValueError: If cameras, image size, chunk length or statistics do not fit, or the tokenizer uses ids of actions.
    """
    config = model.config
    if len(data.cameras) != config.num_images:
        raise ValueError(f"The data has frames of {data.cameras}, but the model reads {config.num_images} camera(s).")
    if data.image_size != config.image_size or data.chunk_size != config.action_chunk_size:
        raise ValueError(
            f"The data was read with image_size={data.image_size}, chunk_size={data.chunk_size}; the model takes "
            f"{config.image_size} and {config.action_chunk_size}."
        )
    if config.action_head is not None:
        raise ValueError("The model regresses actions with a continuous head; fine-tune one that speaks action tokens.")
    input_ids, attention_mask = model.tokenize(data.instructions)
    largest = int((input_ids * attention_mask).max())
    if largest >= config.vocab_size - config.n_action_bins:
        raise ValueError(
            f"The tokenizer gives token id {largest}, which the model's vocabulary of {config.vocab_size} "
            "uses for actions or does not have: checkpoint and tokenizer belong to different vocabularies."
        )
    if statistics is None:
        return
    for name, values in (("action", data.actions), ("proprio", data.state)):
        low, high = (_quantiles(statistics.get(name), key, values.shape[1], name) for key in ("q01", "q99"))
        slack = 0.01 * (high - low) + 1e-6
        outside = ((values < low - slack) | (values > high + slack)).mean(0)
        if outside.max() > max_clipped:
            raise ValueError(
                f"{outside.max():.0%} of the data lies outside q01..q99 of the statistics given for '{name}', in "
                f"dimension {int(outside.argmax())}: they belong to other data. Leave them out to take the data's own."
            )


def _quantiles(stats: Any, key: str, n_dims: int, name: str) -> np.ndarray:
    """A quantile of given statistics, float64 (n_dims,)."""
    try:
        values = np.asarray(stats[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (n_dims,) or not np.isfinite(values).all():
        raise ValueError(
            f"The statistics of '{name}' do not describe {n_dims} dimensions: expected as many finite numbers in "
            f"{key!r}. Leave the statistics out to take the data's own."
        )
    return values


def _check_arguments(model: Any, data: Any, unnorm_key: Any, statistics: Any, lora: Any, augmentation: Any) -> None:
    """One sentence for arguments of another kind."""
    kinds: dict[str, tuple[Any, type, str]] = {
        "model": (model, OpenVLA, "an `OpenVLA`, of OpenVLA.from_pretrained"),
        "data": (
            data,
            ActionChunks,
            "`ActionChunks`, such as ActionChunks(LeRobotReader('mine'), image_size=224)",
        ),
        "unnorm_key": (unnorm_key, str, "a name, such as 'libero'"),
        "statistics": (statistics, dict, "None, or a dictionary with 'action' and 'proprio'"),
        "lora": (lora, dict, "None, or a dictionary such as {'r': 32}"),
        "augmentation": (augmentation, Augmentation, "None, or an `Augmentation`"),
    }
    for name, (value, kind, expected) in kinds.items():
        left_out = value is None and name in ("statistics", "lora", "augmentation")
        if not (left_out or isinstance(value, kind)) or value == "":
            raise ValueError(f"{name} is {value!r:.80}; expected {expected}.")


def _keyframe_head(model: OpenVLA, settings: SFTSettings) -> nn.Module:
    """Head of the auxiliary loss: hidden state (B, D) to a position (B, 3) in units of its spread."""
    if not settings.keyframe_coef:
        return nn.Identity()
    with th.random.fork_rng(devices=[]):
        th.manual_seed(settings.seed)
        head = nn.Linear(model.hidden_size, 3)
    return cast(nn.Module, head.to(model.device))
