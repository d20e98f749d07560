"""Paraphrases keep the meaning: no two of LIBERO's forty instructions can be said in the same words."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from cloning import SIZE, demonstrations, episode, small_model
from tokenizers import Tokenizer

from libero_gym.tasks import get_tasks
from vla_agent.commands import finetune
from vla_agent.openvla.tiny import chunked_config, tiny_tokenizer, write_tiny
from vla_agent.sft.data import ActionChunks
from vla_agent.sft.lexicon import FRAMES, QUESTIONS, THINGS, VERBS
from vla_agent.sft.paraphrases import _expand, is_known, paraphrase, reword, rewordings, vocabulary
from vla_agent.sft.trainer import SupervisedTrainer

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
UNKNOWN = "Stack the red block on the green one"


@pytest.fixture(scope="module")
def forty() -> list[str]:
    return [task.instruction for suite in SUITES for task in get_tasks(suite)]


@pytest.fixture(scope="module")
def everything(forty: list[str]) -> dict[str, set[str]]:
    return {text: set(rewordings(text)) for text in forty}


def unframed(sentence: str) -> str:
    """The order in a sentence: without capital letter, mark and frame."""
    order = sentence.rstrip(".?")
    order = order[0].lower() + order[1:]
    frames = {(before[0].lower() + before[1:] if before else "", behind) for before, behind in [*FRAMES, *QUESTIONS]}
    for before, behind in sorted(frames, key=lambda frame: len(frame[0]), reverse=True):
        if order.startswith(before) and order.endswith(behind):
            return order[len(before) : len(order) - len(behind)].strip()
    return order


# --------------------------------------------------------------------------------------------------------- meaning


def test_the_grammar_covers_the_forty_instructions_and_keeps_them_as_one_wording(
    everything: dict[str, set[str]],
) -> None:
    assert len(everything) == 40
    for text, wordings in everything.items():
        assert is_known(text)
        assert text in wordings
        assert len(wordings) >= 20


def test_no_two_instructions_share_a_wording(everything: dict[str, set[str]]) -> None:
    owners = Counter(itertools.chain.from_iterable(everything.values()))
    assert len(owners) > 100_000
    assert [wording for wording, count in owners.items() if count > 1] == []


def test_no_wording_looks_like_a_frame_so_that_framed_sentences_differ_too(everything: dict[str, set[str]]) -> None:
    openings = {before.split()[0].lower() for before, _ in [*FRAMES, *QUESTIONS] if before}
    firsts = {wording.split()[0] for wordings in everything.values() for wording in wordings}
    assert firsts & openings == set()
    assert firsts <= VERBS | {"on", "onto", "in", "into", "inside"}
    assert not any("please" in wording for wordings in everything.values() for wording in wordings)


def test_a_drawn_sentence_is_a_wording_of_its_instruction_in_a_frame(everything: dict[str, set[str]]) -> None:
    generator = np.random.default_rng(0)
    for text, wordings in everything.items():
        sentences = [paraphrase(text, generator) for _ in range(100)]
        assert {unframed(sentence) for sentence in sentences} <= wordings
        assert len(set(sentences)) > 30


def test_no_two_things_share_a_name() -> None:
    names = {thing: set(_expand(phrase)) for thing, phrase in THINGS.items()}
    assert all(thing in found for thing, found in names.items())
    shared = {(a, b) for a, b in itertools.combinations(names, 2) if names[a] & names[b]}
    assert shared == {("cream cheese", "cream cheese box")}  # one thing under two names


def test_a_bowl_keeps_the_place_where_it_is_taken_from(everything: dict[str, set[str]]) -> None:
    cabinet = "pick up the black bowl on the wooden cabinet and place it on the plate"
    assert not any(re.search(r"from (the )?(wooden|cabinet)", wording) for wording in everything[cabinet])
    assert any("off the wooden cabinet" in wording for wording in everything[cabinet])
    stove = everything["pick up the black bowl on the stove and place it on the plate"]
    for wording in stove:
        assert re.search("stove|cooker|cooktop", wording)
        if not re.search(r"\bit\b", wording):  # "put the bowl on the stove on the plate" could mean either
            assert re.search("(that is|which is|located) on", wording)


def test_whatever_is_put_keeps_its_place(everything: dict[str, set[str]]) -> None:
    mugs = "put the white mug on the left plate and put the yellow and white mug on the right plate"
    for wording in everything[mugs]:
        first, second = re.split(r"(?:,| and)(?: and)?(?: then)? (?:put|place|set) ", wording)
        assert ("left" in first, "yellow" in first) == (True, False)
        assert ("right" in second, "yellow" in second) == (True, True)


# ------------------------------------------------------------------------------------------------------ the sampling


def test_the_same_generator_gives_the_same_sentences(forty: list[str]) -> None:
    first, second = (reword(forty, 0.7, np.random.default_rng(3)) for _ in range(2))
    assert first == second != reword(forty, 0.7, np.random.default_rng(4))
    a, b = np.random.default_rng(5), np.random.default_rng(5)
    assert [paraphrase(text, a) for text in forty] == [paraphrase(text, b) for text in forty]
    assert a.bit_generator.state == b.bit_generator.state


def test_about_the_share_of_a_batch_is_reworded(forty: list[str]) -> None:
    batch = forty * 25
    assert reword(batch, 0.0, np.random.default_rng(0)) == batch
    kept = [np.mean(np.array(reword(batch, share, np.random.default_rng(0))) == batch) for share in (0.5, 1.0)]
    assert 0.47 < kept[0] < 0.55
    assert kept[1] < 0.05


def test_capitals_spaces_and_a_full_stop_do_not_hide_an_instruction() -> None:
    assert is_known(" Put the bowl  on the stove. ")
    sentence = paraphrase("Put the bowl on the stove.", np.random.default_rng(0))
    assert unframed(sentence) in set(rewordings("put the bowl on the stove"))


def test_an_unknown_order_keeps_its_words_in_a_frame() -> None:
    assert not is_known(UNKNOWN)
    assert list(rewordings(UNKNOWN)) == [UNKNOWN.lower()]
    generator = np.random.default_rng(0)
    sentences = {paraphrase(UNKNOWN, generator) for _ in range(400)}
    assert {unframed(sentence) for sentence in sentences} == {UNKNOWN[0].lower() + UNKNOWN[1:]}
    assert {"Stack the red block on the green one.", "Can you stack the red block on the green one?"} <= sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the bowl goes on the stove", {"The bowl goes on the stove", "The bowl goes on the stove."}),
        ("please put it away!", {"Please put it away!"}),
        ("put it away, then stop", {"Put it away, then stop", "put it away, then stop."}),
        ("", set()),
    ],
)
def test_what_is_no_plain_order_gets_no_frame(text: str, expected: set[str]) -> None:
    generator = np.random.default_rng(0)
    sentences = {paraphrase(text, generator) for _ in range(100)}
    assert expected <= sentences
    assert {sentence.lower().removesuffix(".") for sentence in sentences} == {text.lower()}


def test_no_paraphrase_is_another_instruction_of_the_data() -> None:
    mug, cup = "put the white mug on the plate", "put the white cup on the plate"
    both = [{unframed(paraphrase(mug, np.random.default_rng(i), taken)) for i in range(2000)} for taken in ([], [cup])]
    assert cup in both[0] - both[1]


# ------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def data() -> ActionChunks:
    texts = ["put the bowl on the stove", "turn on the stove"]
    return ActionChunks([episode(text, side) for text in texts for side in (-1.0, 1.0)], image_size=SIZE, chunk_size=2)


def learner(folder: Path, data: ActionChunks, **settings: Any) -> SupervisedTrainer:
    defaults = {"n_steps": 6, "batch_size": 8, "warmup_steps": 2, "paraphrase": 0.5}
    return SupervisedTrainer(small_model(folder), data, **defaults | settings)


def heard(trainer: SupervisedTrainer) -> list[list[str]]:
    """Instructions of every forward pass from now on."""
    batches: list[list[str]] = []
    tokenize = trainer.model.tokenize
    trainer.model.tokenize = lambda texts: (batches.append(list(texts)), tokenize(texts))[1]  # type: ignore[method-assign]
    return batches


def test_training_hears_paraphrases_and_validation_the_instructions(tmp_path: Path, data: ActionChunks) -> None:
    trainer = learner(tmp_path, data, validation_share=0.25)
    batches = heard(trainer)
    trainer.train()
    sentences = [text for batch in batches for text in batch]
    assert 0.3 < np.mean([text in data.instructions for text in sentences]) < 0.7
    assert len(set(sentences)) > 15
    batches.clear()
    trainer.validate()
    assert {text for batch in batches for text in batch} <= set(data.instructions)


def test_without_the_option_every_sentence_is_the_instruction(tmp_path: Path, data: ActionChunks) -> None:
    trainer = learner(tmp_path, data, paraphrase=0.0)
    batches = heard(trainer)
    trainer.train(2)
    assert {text for batch in batches for text in batch} <= set(data.instructions)


def test_parts_of_a_batch_hear_what_the_whole_hears(tmp_path: Path, data: ActionChunks) -> None:
    found = []
    for size in (8, 2):
        trainer = learner(tmp_path / str(size), data, micro_batch_size=size)
        batches = heard(trainer)
        trainer.train(3)
        found.append([text for batch in batches for text in batch])
    assert found[0] == found[1]


def test_stopping_and_resuming_changes_no_word_and_no_weight(tmp_path: Path, data: ActionChunks) -> None:
    whole, first, second = (learner(tmp_path / name, data) for name in "abc")
    batches = [heard(trainer) for trainer in (whole, first, second)]
    whole.train()
    first.train(3)
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    second.train()
    assert batches[0] == batches[1] + batches[2]
    for name, tensor in whole.export().state_dict().items():
        th.testing.assert_close(tensor, second.export().state_dict()[name], rtol=0, atol=0)


def test_a_resumed_run_needs_the_same_share(tmp_path: Path, data: ActionChunks) -> None:
    learner(tmp_path / "a", data, paraphrase=0.0).save(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"paraphrase 0\.0 to 0\.5.*resume with the same"):
        learner(tmp_path / "b", data).load(tmp_path / "checkpoint")
    state = tmp_path / "checkpoint/trainer.json"  # one of before the setting
    state.write_text(re.sub(r'\s*"paraphrase": 0\.0,', "", state.read_text()))
    assert "paraphrase" not in state.read_text()
    learner(tmp_path / "c", data, paraphrase=0.0).load(tmp_path / "checkpoint")


def test_unknown_instructions_are_told_once(tmp_path: Path) -> None:
    data = ActionChunks([*demonstrations(), episode("turn on the stove", 1.0)], image_size=SIZE, chunk_size=2)
    with pytest.warns(UserWarning, match=r"does not cover 1 of 2 instructions, such as 'push the plate'"):
        learner(tmp_path, data)


# ------------------------------------------------------------------------------------------------ the tiny tokenizer


def encode(words: list[str]) -> Any:
    tokenizer = Tokenizer.from_str(json.dumps(tiny_tokenizer(words)))
    return lambda text: tokenizer.encode(text).ids


def test_the_vocabulary_holds_every_word_of_a_paraphrase(everything: dict[str, set[str]]) -> None:
    heard = {
        word for wordings in everything.values() for wording in wordings for word in re.findall(r"[\w']+", wording)
    }
    heard |= {word for frame in [*FRAMES, *QUESTIONS] for part in frame for word in re.findall(r"\w+", part.lower())}
    assert {word.removesuffix("'s") for word in heard} <= set(vocabulary())


def test_a_new_tiny_tokenizer_knows_the_words_and_changes_no_other_token(forty: list[str]) -> None:
    before, after = encode([]), encode(vocabulary())
    assert all(len(after(f"to {word}")) == 3 for word in vocabulary())
    assert any(len(before(f"to {word}")) > 3 for word in vocabulary())
    for text in forty:
        assert before(text) == after(text)


def test_wrong_words_of_a_tiny_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot learn the word 'box!'; expected letters from a to z alone\."):
        tiny_tokenizer(["box!"])
    with pytest.raises(ValueError, match=r"vocabulary of 1152 and the tokenizer one of 1216; give both the same words"):
        write_tiny(tmp_path / "model", 0, chunked_config(), vocabulary())


def test_fine_tuning_with_paraphrases_makes_a_tiny_model_that_knows_their_words(tmp_path: Path) -> None:
    for share, one_token in ((0.0, False), (0.5, True)):
        model = finetune.load_model(finetune.Options(out=tmp_path / str(share), paraphrase=share, device="cpu"))
        short, long = (model.tokenize([text])[0].shape[1] for text in ("open", "open cooktop"))
        assert (long - short == 1) is one_token
