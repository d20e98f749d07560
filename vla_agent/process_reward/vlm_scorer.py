"""A pretrained vision-language model as a scorer: the probability that it answers yes."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.nn import functional as F

from libero_gym.common.checks import flag, sequence
from vla_agent.common.hashes import fingerprint, hash_weights
from vla_agent.policy.lora import LoraSettings, add_lora
from vla_agent.process_reward.interface import CAMERA, RewardModelError, check_frames, warn_of_unseen
from vla_agent.process_reward.model_folder import find_model, is_hub_id
from vla_agent.process_reward.storage import check_weights, digest, read_config, read_weights, write_scorer

# The question that VLA-RL (arXiv 2505.18719, section 3.3) asks about a frame, and its two answers.
QUESTION = "The task is {instruction}, is it completed? Answer yes or no."
ANSWERS = ("no", "yes")


class VLMScorer:
    """Asks a vision-language model whether an instruction is completed, and reads the probability of yes.

    Any image-text-to-text model of `transformers` will do. Only the answers' first tokens count: the score is
    P(yes) / (P(yes) + P(no)), where each P is a sum over spellings with and without a capital and a leading space.

    Args:
        model: An image-text-to-text model.
        processor: The model's processor.
        question: Question to ask; ``{instruction}`` is filled in.
        camera: Observation key of the frames.
        instructions: Instructions that it was fine-tuned on, others bring a warning; None warns of none.
        name: The model's folder or hub id, which `save` refers to.
        lora: Settings of adapters to train beside the frozen model; None adds no adapters.

    Raises:
        RewardModelError: If no token tells yes from no, or the question is no template of an instruction.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        question: str = QUESTION,
        camera: str = CAMERA,
        instructions: Sequence[str] | None = None,
        name: str | None = None,
        lora: LoraSettings | None = None,
    ) -> None:
        _check_question(question)
        self.model, self.processor = model.eval(), processor
        self.question, self.camera, self.name, self.lora = question, camera, name, lora
        self.instructions = None if instructions is None else tuple(instructions)
        self._warned: set[str] = set()
        self._frozen: str | None = None
        processor.tokenizer.padding_side = "left"  # so that every row's answer follows its last position
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        first = [_first_tokens(processor.tokenizer, answer) for answer in ANSWERS]
        self._answer_ids = [sorted(own - other) for own, other in (first, first[::-1])]
        if not all(self._answer_ids):
            raise RewardModelError(
                "The model's tokenizer has no first token that tells 'yes' from 'no'; ask another model."
            )
        if lora is not None:
            add_lora(model, lora, [])

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: th.dtype = th.bfloat16,
        device: Any = "cpu",
        download: bool = True,
        **kwargs: Any,
    ) -> VLMScorer:
        """Load a model from a folder or the hub, from safetensors and without remote code.

        Of a model of the hub, the configuration is looked through before the rest is downloaded.

        Args:
            path_or_id: Folder or hub id, such as "HuggingFaceTB/SmolVLM-500M-Instruct".
            dtype: Type of the weights.
            device: Device to load the weights to.
            download: Whether a model of the hub may be downloaded; False takes it only if its files are here already.
            kwargs: Further arguments of the constructor.

        Raises:
            RewardModelError: If there is no such model, or it asks for code of its own, or its folder holds adapters.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = find_model(path_or_id, flag("download", download))
        # False is said aloud because transformers asks on the terminal if it is left out.
        safely = {"trust_remote_code": False, "local_files_only": True}
        try:
            processor = AutoProcessor.from_pretrained(folder, **safely)
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safely)
        except Exception as error:  # transformers raises many kinds of a damaged folder
            raise RewardModelError(
                f"'{path_or_id}' is no vision-language model that can be loaded: {error!s:.500}"
            ) from error
        return cls(model.to(device), processor, name=str(path_or_id), **kwargs)

    def answer_logits(self, images: np.ndarray, instructions: Sequence[str]) -> th.Tensor:
        """Log-probabilities (B, 2) of the answers no and yes, normalised over the whole vocabulary.

        Args:
            images: uint8 (B, H, W, 3).
            instructions: B instructions.
        """
        inputs = self._inputs(images, instructions)
        logits = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        log_probs = F.log_softmax(logits, dim=-1)
        return th.stack([log_probs[:, ids].logsumexp(dim=-1) for ids in self._answer_ids], dim=1)

    @th.no_grad()
    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], float32 (n,), of images uint8 (n, H, W, 3) under n instructions.

        Raises:
            RewardModelError: If the images have another type, or the instructions are no n strings.
        """
        check_frames(images, instructions)
        if self.instructions is not None:
            warn_of_unseen(instructions, self.instructions, self._warned)
        return self.answer_logits(images, instructions).softmax(dim=-1)[:, 1].cpu().numpy()

    def loss(self, images: np.ndarray, instructions: Sequence[str], targets: np.ndarray) -> th.Tensor:
        """Next-token loss of the answers, -t log P(yes) - (1 - t) log P(no), over B frames with targets t (B,)."""
        log_probs = self.answer_logits(images, instructions)
        yes = th.as_tensor(targets, dtype=log_probs.dtype, device=log_probs.device)
        return -(yes * log_probs[:, 1] + (1 - yes) * log_probs[:, 0]).mean()

    def fingerprint(self) -> str:
        """Short hash of its weights, adapters among them, of its name and its question."""
        if self._frozen is None:  # gigabytes, which stay as they are
            adapters = self._adapters()
            own = ((name, tensor) for name, tensor in sorted(self.model.state_dict().items()) if name not in adapters)
            self._frozen = fingerprint(hash_weights({name: tensor}).encode() for name, tensor in own)
        return digest(self._adapters(), f"{self.name}|{self.question}|{self._frozen}")

    def save(self, folder: str | Path) -> None:
        """Write the adapters and a reference to the model to a folder.

        Raises:
            ValueError: If the model has no name to refer to.
            FileExistsError: If something else than a scorer is there.
        """
        if self.name is None:
            raise ValueError("The scorer's model has no name to refer to; give VLMScorer name=, a folder or a hub id.")
        document = {
            "class": type(self).__name__,
            "model": str(Path(self.name).absolute()) if Path(self.name).is_dir() else self.name,
            "question": self.question,
            "camera": self.camera,
            "instructions": self.instructions,
            "lora": None if self.lora is None else dataclasses.asdict(self.lora),
        }
        write_scorer(folder, document, self._adapters())

    @classmethod
    def load(cls, folder: str | Path, device: Any = "cpu", *, download: bool = False) -> VLMScorer:
        """Load the scorer that `save` wrote.

        Args:
            folder: The folder.
            device: Device to load the weights to.
            download: Whether to download the model that its scorer.json names on the hub; else it has to be here
                already, for a folder that somebody sent could name any model.

        Raises:
            RewardModelError: If it is incomplete or damaged, or its model cannot be loaded.
        """
        folder = Path(folder)
        config = read_config(folder)
        tensors = read_weights(folder)
        missing = [key for key in ("model", "question", "camera", "instructions", "lora") if key not in config]
        if missing:
            raise RewardModelError(f"The scorer in '{folder}' is incomplete: its scorer.json lacks {missing[0]!r}.")
        try:
            lora = None if config["lora"] is None else LoraSettings.from_dict(config["lora"])
            kwargs = _checked_arguments(config)
            name = _find_model(config["model"], folder)
        except (TypeError, ValueError) as error:
            raise RewardModelError(f"The scorer in '{folder}' is incomplete or damaged: {error!s:.300}") from error
        ranks = {len(tensor) for key, tensor in tensors.items() if "lora_A" in key and tensor.ndim}
        if ranks != (set() if lora is None else {lora.r}):  # before adapters of any rank are made
            raise RewardModelError(f"The adapters in '{folder}' are not of the rank that its scorer.json says.")
        dtype = th.float32 if th.device(device).type == "cpu" else th.bfloat16
        scorer = cls.from_pretrained(name, dtype=dtype, device=device, download=download, lora=lora, **kwargs)
        check_weights(folder, tensors, scorer._adapters())
        scorer.model.load_state_dict(tensors, strict=False)
        return scorer

    def _adapters(self) -> dict[str, th.Tensor]:
        return {name: tensor for name, tensor in self.model.state_dict().items() if "lora_" in name}

    def _inputs(self, images: np.ndarray, instructions: Sequence[str]) -> dict[str, th.Tensor]:
        from PIL import Image

        texts = [self._prompt(instruction) for instruction in instructions]
        frames = [[Image.fromarray(image)] for image in images]
        inputs = self.processor(text=texts, images=frames, return_tensors="pt", padding=True)
        floating = {key: value.to(self.model.dtype) for key, value in inputs.items() if value.is_floating_point()}
        return {key: value.to(self.model.device) for key, value in {**inputs, **floating}.items()}

    def _prompt(self, instruction: str) -> str:
        """The question as the model's chat template puts it, or, without one, behind the image's token."""
        question = self.question.format(instruction=instruction)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))
        return f"{getattr(self.processor, 'image_token', '<image>')}{question}"


def _first_tokens(tokenizer: Any, answer: str) -> set[int]:
    """First tokens of an answer's spellings, without tokens of mere space and the unknown token.

    Tokenizers like Llama-2's put a lone space before each text, which does not tell one answer from another.
    """
    spellings = [space + word for space in ("", " ") for word in (answer, answer.capitalize())]
    first = set()
    for spelling in spellings:
        ids = tokenizer.encode(spelling, add_special_tokens=False)
        first |= set([token for token in ids if tokenizer.decode([token]).strip()][:1])
    return first - {tokenizer.unk_token_id}


def _check_question(question: Any) -> None:
    """Refuse a question that does not fill in the instruction, or fills in anything else."""
    try:
        fields = [part[1:] for part in string.Formatter().parse(question) if part[1] is not None]
    except (TypeError, ValueError):
        fields = []
    if not fields or any(field != ("instruction", "", None) for field in fields):
        raise RewardModelError(f"question={question!r:.200}; expected a text with {{instruction}} in it.")


def _checked_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from a scorer.json."""
    question, camera, instructions = config["question"], config["camera"], config["instructions"]
    _check_question(question)
    if not isinstance(camera, str):
        raise ValueError(f"camera={camera!r:.80}; expected the name of an observation.")
    for instruction in [] if instructions is None else sequence("instructions", instructions):
        if not isinstance(instruction, str):
            raise ValueError(f"instructions must be strings, got {instruction!r:.80}.")
    return {"question": question, "camera": camera, "instructions": instructions}


def _find_model(name: Any, folder: Path) -> str:
    """Where the model of a scorer.json is: in the scorer's folder, at an absolute path, or on the hub."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"model={name!r:.80}; expected a folder or a hub id.")
    if ".." in Path(name).parts or name.startswith("~"):
        raise ValueError(f"model={name!r:.200} reaches outside the scorer's folder; give an absolute path or a hub id.")
    if Path(name).is_absolute():
        return name
    if (folder / name).is_dir():
        return str(folder / name)
    if not is_hub_id(name):
        raise ValueError(f"model={name!r:.200} is no folder in the scorer's folder, no absolute path and no hub id.")
    return name
