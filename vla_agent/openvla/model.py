"""OpenVLA: two vision towers, a projector and a Llama that speaks action tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch as th

from libero_gym.dimensions import ACTION_DIM
from vla_agent.action_tokens import unnormalize
from vla_agent.backbone import Abilities
from vla_agent.bins import Sampling
from vla_agent.openvla.acting import ActionNetwork
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.decoders import ParallelDecoder
from vla_agent.openvla.image import pixel_values_from_images
from vla_agent.openvla.processor import Processor
from vla_agent.openvla.weights import load_module, save_module


class OpenVLA(ActionNetwork):
    """The published model without its framework: same tensors by name, same numbers, any batch of prompts.

    Actions are N = 7 tokens (times `action_chunk_size`), each conditioned on those before; with `decoding="parallel"`
    in the config they are independent given the observation, and one pass gives them all.

    Bin b of 0..255 counts upward with the action's value and has token id `vocab_size - 1 - b`, where
    `vocab_size` leaves out the embedding's padding: bin 0 is id 31999 and value -1 in the published vocabulary, bin 255
    is id 31744; bins 254 and 255 decode to the same value. Logits called "by bin" are in this order. `sample_actions`,
    `score_actions` and `encode_observations` are what `vla_agent.backbone.VLABackbone` asks for, in bins;
    `action_logits` and `generate_actions` speak token ids, as the published code does.

    Args:
        config: Shape of the model.
        processor: Tokenizer, image sizes and action statistics; without it only the tensor calls work.
    """

    def __init__(self, config: OpenVLAConfig, processor: Processor | None = None) -> None:
        super().__init__(config)
        self._processor = processor

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, dtype: th.dtype | None = None, device: th.device | str | None = None
    ) -> "OpenVLA":
        """Loads a model, shard by shard.

        Args:
            path_or_id: A folder, the name of a model that ships with this package ("tiny", "tiny-libero"), or a hub id
                such as "openvla/openvla-7b-finetuned-libero-spatial".
            dtype: Type of the weights; float32 on a CPU and bfloat16 elsewhere by default.
            device: Where to put them; the CPU by default.

        Raises:
            CheckpointError: If there is no such checkpoint, it has no safetensors, or its tensors are not, by name and
                shape, those of the model that its config describes.
            TypeError: If ``path_or_id`` is no path.
            ValueError: If ``dtype`` is no type of weights.
        """
        model = load_module(cls, path_or_id, dtype=dtype, device=device)
        model.reset_rotary()
        return model.eval()

    def save_pretrained(self, path: str | Path, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes the model in the published layout, which OpenVLA's own code loads too.

        Everything is written to a temporary folder beside ``path`` and then renamed, so that an interruption leaves no
        half checkpoint. If ``path`` holds an OpenVLA checkpoint already, its files are replaced; all other files stay.

        Args:
            path: Folder, made if it does not exist.
            max_shard_size: Bytes per safetensors file.

        Raises:
            FileExistsError: If a file of one of the checkpoint's names is there that is no part of an OpenVLA
                checkpoint.
        """
        save_module(self, self.config, self.processor.files, path, max_shard_size=max_shard_size)

    @property
    def processor(self) -> Processor:
        """Tokenizer, image sizes and action statistics of the checkpoint.

        Raises:
            ValueError: If the model was built from a bare configuration.
        """
        if self._processor is None:
            raise ValueError("This OpenVLA was built without a processor; pass one, or use OpenVLA.from_pretrained.")
        return self._processor

    @property
    def abilities(self) -> Abilities:
        """What the model can do, for whoever does not know which model it is."""
        return Abilities(
            speaks_bins=self.decoder.speaks_bins,
            regresses_actions=not self.decoder.speaks_bins,
            autocast=True,
            cuda_graphs=True,
            gradient_checkpointing=True,
            samples_candidates=self.decoder.speaks_bins,
            independent_tokens=isinstance(self.decoder, ParallelDecoder),
        )

    def preprocess(self, *images: np.ndarray | th.Tensor) -> th.Tensor:
        """Pixel values of images, in the model's type and on its device.

        Args:
            images: uint8 (B, H, W, 3), one array per camera. Another size than the model's is resized as the published
                processor does (PIL, bicubic, on the CPU).

        Returns:
            Shape (B, 6 per camera, S, S), S the model's image size: each tower's normalisation in turn.

        Raises:
            TypeError: If the images are not uint8 arrays.
            ValueError: If their shape is not (B, H, W, 3), or the model takes another number of cameras.
        """
        if len(images) != self.config.num_images:
            raise ValueError(f"The model takes images of {self.config.num_images} cameras, got {len(images)}.")
        processor = self.processor
        settings = (processor.image_size, processor.image_means, processor.image_stds, self.device)
        return th.cat([pixel_values_from_images(x, *settings) for x in images], dim=1).to(self.dtype)

    def tokenize(self, instructions: Sequence[str]) -> tuple[th.Tensor, th.Tensor]:
        """Prompt tokens of instructions.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, L) on the model's device, padded on the right; without the
            trailing empty piece (29871), which every call below appends itself.
        """
        input_ids, attention_mask = self.processor.tokenize(instructions)
        return th.from_numpy(input_ids).to(self.device), th.from_numpy(attention_mask).to(self.device)

    def generate_actions(
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
        generator: th.Generator | None = None,
    ) -> th.Tensor:
        """Action token ids, int64 (B, N); arguments as `Sampling` and `sample_actions`."""
        sampling = Sampling(deterministic, temperature, top_k, top_p)
        inputs = (input_ids, attention_mask, pixel_values)
        sample = self.sample_actions(*inputs, state=state, sampling=sampling, generator=generator)
        return self.action_token_ids[sample.bins]

    def predict_action(
        self,
        images: np.ndarray,
        instructions: str | Sequence[str],
        unnorm_key: str | None = None,
        image_transform: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        wrist_images: np.ndarray | None = None,
        state: np.ndarray | None = None,
        deterministic: bool = True,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Actions in the units of the training data.

        Args:
            images: uint8 (B, H, W, 3).
            instructions: One per image, or one for all.
            unnorm_key: Which statistics to use; may be left out if the checkpoint has a single one.
            image_transform: Applied to the images first, such as `lambda x: center_crop(libero_image(x))`.
            wrist_images: The second camera's, for a model that takes two.
            state: Robot states (B, 8) as observed, for a model that takes them.
            deterministic: Decode greedily, as the published evaluation does.
            temperature: Divides the logits before sampling, if not deterministic. A continuous head ignores both.

        Returns:
            float64, shape (B, 7), or (B, chunk, 7) for a model of chunks. The gripper is as the model says it (0
            closed, 1 open); `Processor.action_table` has it as LIBERO's environments want it.

        Raises:
            ValueError: If the checkpoint lacks `unnorm_key`, or images and instructions differ in number.
        """
        texts = [instructions] * len(images) if isinstance(instructions, str) else list(instructions)
        if len(texts) != len(images):
            raise ValueError(f"Got {len(images)} images but {len(texts)} instructions; give one each, or one for all.")
        self.processor.action_stats(unnorm_key)  # complain before the work, not after
        cameras = [images] if wrist_images is None else [images, wrist_images]
        pixels = self.preprocess(*(x if image_transform is None else image_transform(x) for x in cameras))
        states = None
        if state is not None:
            states = th.from_numpy(self.processor.normalize_state(state, unnorm_key)).to(self.device)
        if self.action_head is not None:
            actions = self.regress_actions(*self.tokenize(texts), pixels, state=states).cpu().numpy()
            return unnormalize(actions.astype(np.float64), self.processor.action_stats(unnorm_key))
        ids = self.generate_actions(
            *self.tokenize(texts), pixels, state=states, deterministic=deterministic, temperature=temperature
        )
        shape = (len(texts), -1, ACTION_DIM) if self.config.action_chunk_size > 1 else (len(texts), ACTION_DIM)
        return self.processor.decode_actions(ids.cpu().numpy().reshape(shape), unnorm_key)
