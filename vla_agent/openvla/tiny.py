"""The tiny checkpoint that ships: every part of the real class, smaller, with its own tokenizer and seeded weights.

`python -m vla_agent.openvla.tiny [folder]` writes it again, bit for bit.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

from vla_agent.action_tokens import N_BINS
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.files import PREPROCESSOR_FILE, TINY_FOLDER
from vla_agent.openvla.processor import IMAGE_MEANS, IMAGE_STDS, Processor

SEED = 0
IMAGE_SIZE = 112  # 8 x 8 patches of 14 pixels
N_TEXT_TOKENS = 896  # of the checkpoints that ship; more words take the next multiple of PADDING
PADDING = 64
BOUNDARY = "▁"

# Words of LIBERO's and LIBERO-PRO's instructions, then of others like them; each becomes one token.
WORDS = """
a akita alphabet and at back basket bbq beside between black book both bottle bottom bowl box butter by cabinet caddy
center cheese chocolate close compartment cookie cookies cream cup door drawer dressing from front frying grab in
inside into involves it juice ketchup layer left lift meal microwave middle milk mixing moka move mug next not object
of off on open orange organizing pan pick place plate popcorn pot pots prepare preparing pudding push put quick rack
ramekin red right salad sauce set shelf slide snack soup stack stove switch table take task the them to tomato top
transfer tray turn under up using white wine wooden yellow
above all another apple away ball banana before behind below blue bread bring brown button can carrot carry clean
cloth corner cover cube cut cutting dark drop edge egg empty faucet fill first flip fold fork forward front fruit get
glass green grey grip gripper handle hang hold hot insert item jar keep kettle kitchen knife knob ladle large lay lid
light lower metal near onto other out over paper peg pepper pink place plastic potato pour press pull purple release
remove return reverse robot room rotate round sink slowly small spatula spoon square sugar sweep tall then three
through tip touch towel toy two upright wall water wipe with
""".split()  # noqa: SIM905
PROMPT_WORDS = ["In", "What", "action", "should", "the", "robot", "take", "to"]
PROMPT_PIECES = ["Out"]  # follows a line break, not a space

# Raw delta ranges like those of LIBERO's demonstrations; the gripper is left as it is (0 closed, 1 open).
ACTION_STATS = {
    "q01": [-0.94, -0.88, -0.94, -0.11, -0.2, -0.18, 0.0],
    "q99": [0.94, 0.88, 0.94, 0.11, 0.2, 0.18, 1.0],
    "mask": [True] * 6 + [False],
}


def tiny_config(words: Sequence[str] = ()) -> OpenVLAConfig:
    """Configuration of the tiny model: two towers of width 96, a Llama of width 128, 64 image tokens.

    Args:
        words: Further words that its tokenizer knows; see `tiny_tokenizer`.
    """
    pieces = _text_vocabulary(_merges(words))
    vocab_size = _n_text_tokens(pieces) + N_BINS
    return OpenVLAConfig(
        timm_model_ids=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        image_sizes=[IMAGE_SIZE, IMAGE_SIZE],
        text_config={
            "model_type": "llama",
            "vocab_size": vocab_size + PADDING,
            "pad_token_id": vocab_size,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
        },
        norm_stats={"libero": {"action": ACTION_STATS}},
        pad_to_multiple_of=PADDING,
        pad_token_id=vocab_size,
        vision_tower_sizes=[
            {"embed_dim": 96, "depth": 4, "num_heads": 3},
            {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_dim": 320},
        ],
        empty_piece_id=pieces.index(BOUNDARY),
        extra={"architectures": ["OpenVLAForActionPrediction"], "image_resize_strategy": "resize-naive"},
    )


def chunked_config(words: Sequence[str] = ()) -> OpenVLAConfig:
    """Configuration of the tiny model that learns LIBERO: chunks of 8 actions in one pass, and the robot's state.

    Args:
        words: Further words that its tokenizer knows; see `tiny_tokenizer`.
    """
    config = tiny_config(words)
    config.text_config["num_hidden_layers"] = 3
    config.vision_tower_sizes = [{"embed_dim": 96, "depth": 4, "num_heads": 3}] * 2
    return dataclasses.replace(
        config, action_chunk_size=8, decoding="parallel", use_state=True, learned_placeholders=True
    )


def tiny_tokenizer(words: Sequence[str] = ()) -> dict[str, Any]:
    """Content of the tiny `tokenizer.json`: byte-pair pieces like Llama-2's, with bytes for everything unknown.

    A word that the merges know is one token. Action tokens are pieces that no text merges into.

    Args:
        words: Further words in lower case that become one token each. All other text keeps the token ids that it has
            without them, except where it begins like one of them.

    Raises:
        ValueError: If a further word has other letters than a to z.
    """
    merges = _merges(words)
    text = _text_vocabulary(merges)
    spare = [f"<spare_{i}>" for i in range(_n_text_tokens(text) - len(text))]
    actions = [f"<action_{i}>" for i in range(N_BINS)]
    vocab = {piece: i for i, piece in enumerate([*text, *spare, *actions])}
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<PAD>": len(vocab)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": content, **flags} for content, i in special.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": BOUNDARY},
                {"type": "Replace", "pattern": {"String": " "}, "content": BOUNDARY},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"String": BOUNDARY}, "behavior": "MergedWithNext", "invert": False},
                {
                    "type": "Split",
                    "pattern": {"Regex": f"[^{BOUNDARY}a-zA-Z]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": BOUNDARY}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def write_tiny(folder: Path, seed: int = SEED, config: OpenVLAConfig | None = None, words: Sequence[str] = ()) -> None:
    """Writes the tiny checkpoint: seeded weights in bfloat16, tokenizer, configuration.

    Args:
        folder: Folder of the checkpoint. The same seed gives the same bytes.
        seed: Seed for the weights.
        config: A variation of `tiny_config(words)`, such as one that decodes chunks in parallel.
        words: Further words that the tokenizer knows; see `tiny_tokenizer`.

    Raises:
        ValueError: If the configuration was made for other words.
    """
    from vla_agent.openvla.model import OpenVLA

    config = config or tiny_config(words)
    expected = tiny_config(words).vocab_size
    if config.vocab_size != expected:
        raise ValueError(
            f"The configuration has a vocabulary of {config.vocab_size} and the tokenizer one of {expected}; give both "
            "the same words."
        )
    files = {
        "tokenizer.json": _to_bytes(tiny_tokenizer(words)),
        "tokenizer_config.json": _to_bytes(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "<PAD>",
                "unk_token": "<unk>",
                "padding_side": "right",
                "model_max_length": config.text_config["max_position_embeddings"],
            }
        ),
        PREPROCESSOR_FILE: _to_bytes(
            {
                "image_processor_type": "PrismaticImageProcessor",
                "image_resize_strategy": "resize-naive",
                "input_sizes": [[3, size, size] for size in config.image_sizes],
                "interpolations": ["bicubic", "bicubic"],
                "means": [IMAGE_MEANS[True], IMAGE_MEANS[False]],
                "stds": [IMAGE_STDS[True], IMAGE_STDS[False]],
                "use_fused_vision_backbone": True,
            }
        ),
    }
    with th.device("meta"):
        model = OpenVLA(config, Processor(config, lambda text: [], files))
    model.to_empty(device="cpu")
    initialize(model, seed)
    model.to(th.bfloat16).save_pretrained(folder)


@th.no_grad()
def initialize(model: th.nn.Module, seed: int) -> None:
    """Draws every parameter anew, so that training from scratch starts well.

    Matrices keep the variance of what they map, those that end a residual branch divide it by the branches' number,
    and the head starts near zero, so that the first action distribution is close to uniform. Positions are the usual
    fixed sines and cosines, which small vision transformers learn faster from ("Better plain ViT baselines for
    ImageNet-1k", Beyer, Zhai and Kolesnikov, 2022).
    """
    generator = th.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "scale_factor" or (kind == "weight" and parameter.ndim == 1):
            parameter.fill_(1.0)
        elif kind == "bias":
            parameter.zero_()
        elif kind == "pos_embed":
            parameter.copy_(_sine_positions(parameter.shape[1], parameter.shape[2]))
        else:
            parameter.normal_(0.0, _deviation(name, parameter), generator=generator)


def _deviation(name: str, parameter: th.Tensor) -> float:
    if name.endswith(("embed_tokens.weight", "placeholders.weight", "cls_token", "reg_token", "latent")):
        return 0.5
    if name.endswith("lm_head.weight"):
        return 0.02
    scale = 1.0 / math.sqrt(parameter[0].numel())
    if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")):
        return scale / math.sqrt(8)  # two branches in each of four blocks
    return scale


def _sine_positions(n_patches: int, dim: int) -> th.Tensor:
    """Fixed 2-D positions (1, n_patches, dim): a quarter of the channels each for sine and cosine of x and y."""
    side = math.isqrt(n_patches)
    y, x = th.meshgrid(th.arange(side), th.arange(side), indexing="ij")
    omega = 1.0 / 100 ** (th.arange(dim // 4) / (dim // 4 - 1))
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return 0.5 * th.cat([fn(angle) for angle in angles for fn in (th.sin, th.cos)], dim=1)[None]


def _text_vocabulary(merges: list[tuple[str, str]]) -> list[str]:
    """Special tokens, bytes, letters, merged pieces, in id order as in Llama-2's vocabulary."""
    letters = sorted({letter for word in _spellings() for letter in word})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *("".join(m) for m in merges)]
    return list(dict.fromkeys(pieces))  # two merges can spell the same piece


def _n_text_tokens(text: list[str]) -> int:
    """Token ids before those of the actions."""
    return max(N_TEXT_TOKENS, math.ceil(len(text) / PADDING) * PADDING)


def _spellings() -> list[str]:
    return [BOUNDARY + word for word in sorted({*WORDS, *PROMPT_WORDS})] + PROMPT_PIECES


def _merges(further: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Byte-pair merges until every known word is one piece; those of further words rank last."""
    known = _known_merges()
    spelled = []
    for word in sorted(set(further)):
        if not re.fullmatch("[a-z]+", word):
            raise ValueError(f"The tokenizer cannot learn the word {word!r}; expected letters from a to z alone.")
        spelled.append(functools.reduce(_merge, known, [BOUNDARY, *word]))
    return [*known, *_merge_all(spelled)]


@functools.cache
def _known_merges() -> tuple[tuple[str, str], ...]:
    return tuple(_merge_all([list(word) for word in _spellings()]))


def _merge_all(words: list[list[str]]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first and ties by spelling, until every word is one piece."""
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _to_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def main() -> None:
    """Writes the checkpoint to the folder given, by default where the package looks for it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TINY_FOLDER)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    write_tiny(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
