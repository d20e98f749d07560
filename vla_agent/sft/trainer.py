"""Supervised fine-tuning: behaviour cloning of demonstrations by the loss of the next action token.

data = ActionChunks(LeRobotReader("data/spatial"), image_size=model.processor.image_size)
trainer = SupervisedTrainer(model, data, n_steps=10_000)
trainer.train(progress_bar=True)
trainer.export().save_pretrained("checkpoint")
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from libero_gym.common.checks import whole_number
from vla_agent.action_tokens import bin_centers, to_bins
from vla_agent.augmentation import Augmentation
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.common.errors import NonFiniteError
from vla_agent.common.hashes import fingerprint, hash_weights
from vla_agent.common.randomness import own_randomness
from vla_agent.openvla import OpenVLA
from vla_agent.policy.lora import LoraSettings, add_lora, merge_lora
from vla_agent.policy.precision import warn_of_lost_steps, warn_of_slow_products
from vla_agent.sft.batch import Batch
from vla_agent.sft.checkpoint import check_tensors, pack_tensors, read_checkpoint, restore_tensors, write_checkpoint
from vla_agent.sft.checks import check_arguments, check_fit
from vla_agent.sft.data import ActionChunks, Examples, normalize_position
from vla_agent.sft.losses import bin_targets, next_token_loss, regression_loss, weighted_mean
from vla_agent.sft.paraphrases import warn_of_unknown
from vla_agent.sft.settings import SFTSettings, learning_rate_at
from vla_agent.sft.split import split_frames
from vla_agent.sft.wording import tag_examples, word_examples

logger = logging.getLogger(__name__)


class NonFiniteLossError(NonFiniteError):
    """The loss is NaN or infinite; the message says at which step."""


class Metrics(NamedTuple):
    """Weighted means over the action tokens of one batch.

    Attributes:
        loss: Cross-entropy of the action tokens in nats (against smoothed targets if ``bin_sigma`` is not 0).
        token_accuracy: Share of tokens whose likeliest bin is the right one.
        l1_error: Mean distance of the likeliest bin's value from the right one's, in normalised units (from -1 to 1).
        keyframe_error: Mean distance of the keyframe from where the auxiliary head places it, m; 0 without a head.
    """

    loss: float
    token_accuracy: float
    l1_error: float
    keyframe_error: float


class SupervisedTrainer:
    """Trains a model on demonstrations; stopping and resuming changes nothing, to the bit on a CPU.

    Args:
        model: The model, on its device. The data's statistics replace all that its ``norm_stats`` held.
        data: Demonstrations to learn from. If they have weights, each frame's loss is multiplied by its own over their
            mean, and frames of weight 0 are left out.
        unnorm_key: Name of the data's statistics in the checkpoint, which has no others afterwards.
        statistics: Statistics to use instead of the data's own, such as the checkpoint's.
        lora: Settings of `LoraSettings`, to train adapters instead of all weights; None trains all.
        augmentation: How training images are varied; None leaves them as they are.
        **settings: Fields of `SFTSettings`.

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
        if self.settings.autocast == "bfloat16" and model.device.type == "cpu":
            warn_of_slow_products()
        check_arguments(model, data, unnorm_key, statistics, lora, augmentation)
        check_fit(model, data, statistics)
        self.statistics = data.statistics() if statistics is None else statistics
        self.model, self.data, self.unnorm_key = model, data, unnorm_key
        self.augmentation = augmentation
        self._all_instructions = frozenset(text.lower() for text in data.instructions)
        self.lora = None if lora is None else LoraSettings.from_dict(lora)
        self.step = 0
        if self.settings.paraphrase:
            warn_of_unknown(data.instructions)
        model.config.norm_stats = {unnorm_key: self.statistics}
        if data.tags is not None:
            model.config.prompt_word = ""  # each example says its own
        self._start = {"model": hash_weights(model.state_dict())[:16], "data": data.fingerprint()[:16]}
        unused = model.unused_parameter_names()
        if self.lora is not None:
            with own_randomness(self.settings.seed):
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
        split = split_frames(data, self.settings.validation_share, self.settings.seed)
        self.train_frames, self.validation_frames = split
        self._mean_weight = 1.0 if data.weights is None else float(data.weights[self.train_frames].mean(dtype=float))

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
        """Metrics on held-out episodes, of the trained weights (not their average); None if no episode is held out.

        Args:
            max_examples: At most so many frames, spread evenly over the held-out ones.
        """
        whole_number("max_examples", max_examples, 1)
        if not len(self.validation_frames):
            return None
        chosen = np.linspace(0, len(self.validation_frames) - 1, min(max_examples, len(self.validation_frames)))
        frames = np.unique(self.validation_frames[chosen.round().astype(int)])
        learning = self.model.training
        self.model.eval()
        try:
            return self._pass(self._batch(tag_examples(self.data[frames], self.data.tags)), learn=False)
        finally:
            self.model.train(learning)

    def export(self) -> OpenVLA:
        """A copy of the model to save: averaged weights if there is an average, adapters merged.

        It is in the host's memory, because the device may have no room for a second one; ``.to(device)`` moves it. If
        the data are tagged, the tag's word is part of each of its prompts.
        """
        model = _on_host(self.model, {self._trained[name]: tensor for name, tensor in self._average.items()})
        if self.lora is not None:
            merge_lora(model)
        if self.data.tags is not None:
            model.config.prompt_word = self.data.tags.word
        return model.requires_grad_(True).eval()

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | Path) -> None:
        """Write all that resuming needs, in one rename; an interruption leaves the folder as it was.

        Raises:
            FileExistsError: If something else than such a checkpoint is there.
            OSError: If it cannot be written.
        """
        tensors = pack_tensors(self._trained, self._average, self.optimizer)
        write_checkpoint(folder, tensors, {"step": self.step, "identity": self._identity()})

    def load(self, folder: str | Path) -> None:
        """Go on from `save`.

        Raises:
            ValueError: If there is no such checkpoint, it is damaged, or it belongs to another model, other data or
                other settings; the message lists what differs.
        """
        saved, tensors = read_checkpoint(folder)
        older = {"paraphrase": 0.0, "autocast": "auto", "tags": None}  # what older checkpoints lack
        now, before = self._identity(), self._start | older | saved["identity"]
        changed = [f"{key} {before.get(key)!r} to {now[key]!r}" for key in now if now[key] != before.get(key)]
        if changed:
            raise ValueError(f"'{folder}' was trained otherwise ({', '.join(changed)}); resume with the same.")
        check_tensors(folder, tensors, self._trained, self._average)
        restore_tensors(tensors, saved["step"], self._trained, self._average, self.optimizer)
        self.step = int(saved["step"])

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before."""
        tags = self.data.tags
        return {
            **dataclasses.asdict(self.settings),
            "augmentation": None if self.augmentation is None else dataclasses.asdict(self.augmentation),
            "lora": None if self.lora is None else dataclasses.asdict(self.lora),
            **self._start,
            "examples": len(self.data),
            "weights": None if self.data.weights is None else fingerprint([self.data.weights.tobytes()]),
            "tags": None if tags is None else [tags.word, tags.dropout, fingerprint([tags.tagged.tobytes()])],
            "vocab_size": self.model.config.vocab_size,
            "fingerprint": self.model.processor.fingerprint(),
        }

    # ----------------------------------------------------------------------------------------------------- one step

    def _train_step(self) -> Metrics:
        """One optimizer step; its randomness depends on the seed and the step's number alone."""
        settings = self.settings
        seed = 1_000_003 * settings.seed + self.step
        generator = th.Generator(self.model.device).manual_seed(seed)
        examples = self.data[self._batch_frames(self.step)]
        told = (settings.seed, settings.paraphrase, self._all_instructions, self.data.tags)
        batch = self._batch(word_examples(examples, self.step, *told), generator)
        self.optimizer.zero_grad(set_to_none=True)
        with own_randomness(seed):  # of adapters' dropout
            metrics = self._pass(batch, learn=True)
        norm = nn.utils.clip_grad_norm_(list(self._trained.values()), settings.max_grad_norm)
        if not (math.isfinite(metrics.loss) and math.isfinite(float(norm))):
            raise NonFiniteLossError(
                f"Loss {metrics.loss} with gradient norm {float(norm)} at step {self.step + 1}; the weights are those "
                "before it. Lower the learning rate, or look at the data."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, settings)
        self.optimizer.step()
        self.step += 1
        if self._average:
            # Early weights are forgotten faster, so that the average does not drag the start along.
            decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(decay)(list(self._average.values()), list(self._trained.values()), None)
        return metrics

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

    def _batch(self, examples: Examples, generator: th.Generator | None = None) -> Batch:
        """Examples as the loss takes them, with augmented images if there is a generator.

        Images are augmented before the batch is cut into parts, so that the parts' size changes no random number.
        """
        device = self.model.device
        images = [th.from_numpy(frames).to(device) for frames in examples.images]
        if generator is not None and self.augmentation is not None:
            images = [self.augmentation(frames, generator) for frames in images]
        bins = to_bins(examples.actions, self.statistics["action"])
        position = examples.keyframe
        if self.settings.keyframe_coef:  # given statistics need no mean and no spread otherwise
            position = normalize_position(position, self.statistics["proprio"])
        return Batch(
            images=tuple(images),
            state=examples.state,
            instructions=examples.instructions,
            bins=th.from_numpy(bins.reshape(len(bins), -1)).to(device),
            token_weights=th.from_numpy(examples.token_weights()).to(device),
            keyframe=th.from_numpy(position).to(device),
            weights=th.from_numpy(examples.weights()).to(device),
        )

    def _pass(self, batch: Batch, *, learn: bool) -> Metrics:
        """Send a batch through the model, part by part, and add up metrics and, to learn, gradients.

        Metrics are means by the batch's weights. The gradient is not: a batch of little weight moves the model little,
        or a batch that holds nothing but failures would teach them in full.
        """
        size = self.settings.micro_batch_size or self.settings.batch_size
        totals = batch.token_weights.sum(), batch.weights.sum()
        share = totals[0] / ((batch.token_weights > 0).sum() * self._mean_weight)
        found = []
        with self._computing():
            for start in range(0, len(batch.bins), size):
                loss, metrics = self._losses(batch.rows(slice(start, start + size)), *totals)
                if learn:
                    (share * loss).backward()
                found.append(metrics)
        return Metrics(*np.sum(found, axis=0).tolist())

    def _losses(self, batch: Batch, n_tokens: th.Tensor, n_examples: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """Loss and metrics of a part of a minibatch, each divided by the weight of the whole minibatch."""
        model, bins = self.model, batch.bins
        scores = model.score_actions(**self._inputs(batch), bins=bins)
        log_probs = scores.logits.float().log_softmax(-1)
        loss = next_token_loss(log_probs, bins, batch.token_weights, self._targets, n_tokens)
        likeliest = log_probs.argmax(-1)
        accuracy = weighted_mean((likeliest == bins).float(), batch.token_weights, n_tokens)
        distance = (self._centers[likeliest] - self._centers[bins]).abs()
        error = weighted_mean(distance, batch.token_weights, n_tokens)
        total, keyframe_error = loss, loss.new_zeros(())
        if self.settings.keyframe_coef:
            guess = self._keyframe_head(scores.hidden.float())
            missed = regression_loss(guess, batch.keyframe, batch.weights, n_examples)
            total = loss + self.settings.keyframe_coef * missed
            spread = th.tensor(self.statistics["proprio"]["std"][:3], device=guess.device)
            metres = ((guess - batch.keyframe).detach() * spread).norm(dim=1)
            keyframe_error = weighted_mean(metres, batch.weights, n_examples)
        values = th.stack([loss.detach(), accuracy, error, keyframe_error]).tolist()  # the device is read once
        return total, Metrics(*values)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the model's calls."""
        prompt = self.model.tokenize(batch.instructions)
        return model_inputs(cast(VLABackbone, self.model), *prompt, batch.images, batch.state, self.unnorm_key)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute in the type that the settings ask for; the model's own setting comes back afterwards."""
        before, wanted = self.model.autocast_dtype, self.settings.autocast
        wants = wanted == "bfloat16" or (wanted == "auto" and self.model.device.type == "cuda")
        if before is not None or not wants or self.model.dtype != th.float32:
            yield
            return
        self.model.set_autocast(th.bfloat16)
        try:
            yield
        finally:
            self.model.set_autocast(None)


def _on_host(model: OpenVLA, others: dict[th.Tensor, th.Tensor]) -> OpenVLA:
    """A deep copy in the host's memory, with other values in the place of some parameters'."""
    memo: dict[int, Any] = {}  # what deepcopy takes for already copied
    for parameter in model.parameters():
        values = others.get(parameter, parameter).detach().to("cpu", copy=True)
        memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, memo)


def _keyframe_head(model: OpenVLA, settings: SFTSettings) -> nn.Module:
    """Head of the auxiliary loss: hidden state (B, D) to a position (B, 3) in units of its spread."""
    if not settings.keyframe_coef:
        return nn.Identity()
    with th.random.fork_rng(devices=[]):
        th.manual_seed(settings.seed)
        head = nn.Linear(model.hidden_size, 3)
    return cast(nn.Module, head.to(model.device))
