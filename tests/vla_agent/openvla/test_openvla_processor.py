"""Prompts, tokens and statistics of a checkpoint's processor."""

import numpy as np
import pytest
from openvla_models import INSTRUCTIONS

from vla_agent.openvla import OpenVLA, load_processor, tiny_config
from vla_agent.openvla.files import TINY_FOLDER


def test_tokenize_pads_on_the_right_without_the_empty_piece(model):
    input_ids, attention_mask = load_processor("tiny").tokenize(INSTRUCTIONS)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    lengths = attention_mask.sum(1)
    assert len(set(lengths)) == 3
    for row, length in zip(input_ids, lengths, strict=True):
        assert row[0] == 1
        assert (row[length:] == 1152).all()
        assert row[length - 1] != model.config.empty_piece_id
        assert (row[:length] < 896).all(), "text must not use action tokens"


def test_words_of_the_suites_are_single_tokens():
    input_ids, _ = load_processor("tiny").tokenize(["pick up the ramekin"])
    # BOS, "In", ":", seven words of the prompt, four of the instruction, "?", line break, "Out", ":"
    assert input_ids.shape[1] == 1 + 2 + 7 + 4 + 4


def test_prompt_is_lower_case():
    processor = load_processor("tiny")
    assert processor.build_prompt("Open It") == "In: What action should the robot take to open it?\nOut:"
    assert np.array_equal(processor.tokenize(["OPEN IT"])[0], processor.tokenize(["open it"])[0])


def test_tokenizer_reads_any_text_back():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))
    for text in ["open the drawer", "日本語 🤖 ¿qué?", "tabs\tand\nlines  twice", "Out: ", ""]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    # A trailing space is the empty piece, as Llama-2's 29871 is.
    assert tokenizer.encode("Out: ").ids[-1] == tiny_config().empty_piece_id == tokenizer.token_to_id("▁")


def test_fingerprint_changes_with_what_decides_actions():
    processor = load_processor("tiny")
    before = processor.fingerprint()
    assert before == load_processor("tiny").fingerprint() == OpenVLA.from_pretrained("tiny").processor.fingerprint()
    processor.config.norm_stats["libero"]["action"]["q99"][0] = 0.5
    assert processor.fingerprint() != before


def test_unnorm_key_must_be_one_the_checkpoint_has():
    processor = load_processor("tiny")
    assert processor.action_table().shape == (7, 256)
    with pytest.raises(ValueError, match=r"no statistics for unnorm_key 'libre'. Did you mean 'libero'\? It has"):
        processor.action_table("libre")
    processor.config.norm_stats["other"] = processor.config.norm_stats["libero"]
    with pytest.raises(ValueError, match=r"several data sets; give unnorm_key, one of \['libero', 'other'\]"):
        processor.action_table()
    assert processor.action_table("other").shape == (7, 256)


def test_the_codec_decodes_by_the_table_and_writes_the_prompts_of_a_batch():
    processor = load_processor("tiny")
    codec, (ids, mask) = processor.codec(), processor.tokenize(INSTRUCTIONS)
    bins = np.random.default_rng(0).integers(0, 256, (5, 7))
    np.testing.assert_array_equal(codec.decode(bins)[:, 0], processor.action_table()[np.arange(7), bins])
    for row, instruction in enumerate(INSTRUCTIONS):
        np.testing.assert_array_equal(codec.encode_prompt(instruction)[0], ids[row][mask[row].astype(bool)])
