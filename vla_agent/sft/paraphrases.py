"""Instructions said in other words, by rules: verbs, nouns, word order and polite frames, with the meaning kept.

`paraphrase("put the bowl on the stove", np.random.default_rng(0))` gives one such sentence. The rules are a grammar of
the instructions of LIBERO Spatial, Object, Goal and 10. An instruction outside of it keeps its words and gets a frame,
such as "please ...", if it begins with a verb that the rules know.
"""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from vla_agent.sft.lexicon import (
    AND,
    BOTH_POTS,
    CLOSE,
    FRAMES,
    FROM,
    LOCATED,
    OPEN,
    PICK,
    PICK_APART,
    PLACES,
    PUSH,
    PUT,
    QUESTIONS,
    REACHED,
    TABLE_CENTER,
    THEN,
    THINGS,
    TURN_ON,
    VERBS,
    Phrase,
)

ARTICLES_DROPPED = 0.1  # share of paraphrases in the style of a telegram: "put bowl on plate"
UNFRAMED = 0.5  # share of paraphrases that get no frame
MAX_CHOICES = 64  # numbers that are drawn for a sentence, at once because that is fast; none takes half of them

_THING = "|".join(sorted(map(re.escape, THINGS), key=len, reverse=True))
_SOURCE = rf"(?:on|in|next to) the (?:{_THING})|between the (?:{_THING}) and the (?:{_THING})|from table center"
_TARGET = rf"(?P<reach>{'|'.join(sorted(REACHED, key=len, reverse=True))}) the (?P<place>{_THING})"


def paraphrase(instruction: str, generator: np.random.Generator, taken: Collection[str] = ()) -> str:
    """The instruction in other words, or by chance in the same.

    The sentence depends on the arguments and the generator's state alone.

    Args:
        instruction: The instruction.
        generator: Source of randomness.
        taken: Other instructions of the data, in lower case. None of them is given as a paraphrase of this one.
    """
    plain, draws = _plain(instruction), iter(generator.random(MAX_CHOICES).tolist())
    parsed = _parse(plain)
    if parsed is None:
        return _frame(instruction, draws) if _is_order(instruction) else _finish(instruction, ".", draws)
    body = _join(_draw(parsed, draws))
    if next(draws) < ARTICLES_DROPPED:
        body = _without_articles(body)
    return _frame(plain if body in taken else body, draws)


def reword(
    instructions: Sequence[str], share: float, generator: np.random.Generator, taken: Collection[str] = ()
) -> list[str]:
    """The instructions of a batch, of which about a share is paraphrased.

    Args:
        instructions: The instructions.
        share: Probability that an instruction is paraphrased, from 0 to 1.
        generator: Source of randomness.
        taken: All instructions of the data, in lower case; see `paraphrase`.
    """
    chosen = generator.random(len(instructions)) < share
    return [
        paraphrase(text, generator, taken) if change else text
        for text, change in zip(instructions, chosen, strict=True)
    ]


def is_known(instruction: str) -> bool:
    """Whether the grammar covers the instruction, so that its own words vary and not only the frame around it."""
    return _parse(_plain(instruction)) is not None


def warn_of_unknown(instructions: Sequence[str]) -> None:
    """Warn of instructions whose own words do not vary.

    Warns:
        UserWarning: If there are some; it names the first and how many they are.
    """
    unknown = [text for text in instructions if not is_known(text)]
    if unknown:
        warnings.warn(
            f"The paraphrases' grammar does not cover {len(unknown)} of {len(instructions)} instructions, such as "
            f"{unknown[0]!r:.120}: they keep their words, and get at most a polite frame, a capital and a full stop.",
            stacklevel=3,
        )


def rewordings(instruction: str) -> Iterator[str]:
    """Every rewording of an instruction, in lower case and without a frame; the instruction alone if it is unknown."""
    parsed = _parse(_plain(instruction))
    if parsed is None:
        yield _plain(instruction)
        return
    for words in _expand(parsed):
        body = _join(words)
        yield body
        yield _without_articles(body)


def vocabulary() -> list[str]:
    """Every word that a paraphrase can contain, in lower case and in the alphabet's order."""
    tables: list[Phrase] = [AND, BOTH_POTS, CLOSE, LOCATED, OPEN, PICK, PUSH, PUT, TABLE_CENTER, THEN, TURN_ON]
    tables += [*PICK_APART, *THINGS, *THINGS.values(), *FROM.values(), *PLACES.values(), *REACHED.values()]
    tables += [*FRAMES, *QUESTIONS, "the it them on at in inside there from between and drawer"]
    text = " ".join(leaf for table in tables for leaf in _leaves(table)).lower()
    return sorted(set(re.findall(r"(?<!')\b[a-z]+", text)))


# ------------------------------------------------------------------------------------------------------- the grammar


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Phrase | None:
    """All ways to say an instruction; None if the grammar does not cover it."""
    for pattern, build in _SENTENCES:
        if found := re.fullmatch(pattern, text):
            return build(found)
    for split in re.finditer(" and ", text):
        first, second = _clause(text[: split.start()]), _clause(text[split.end() :])
        if first is not None and second is not None:
            return (first, AND, second)
    return _clause(text)


def _clause(text: str) -> Phrase | None:
    """Ways to say one order of several, without those that a further order would make ambiguous."""
    for pattern, build in _CLAUSES:
        if found := re.fullmatch(pattern, text):
            return build(found)
    return None


def _pick_and_place(found: re.Match[str]) -> Phrase:
    """'pick up the milk and place it in the basket'."""
    thing, target = _the(found["thing"]), _target(found)
    picked: Phrase = [(PICK, thing), *((verb, thing, particle) for verb, particle in PICK_APART)]
    return [(picked, THEN, PUT, "it", target), [(PUT, thing, target), (target, ",", PUT, thing)]]


def _pick_from_and_place(found: re.Match[str]) -> Phrase:
    """'pick up the black bowl on the stove and place it on the plate'.

    With one verb the first place is a relative clause: "put the bowl on the stove on the plate" could mean either.
    """
    thing, target = _the(found["thing"]), _target(found)
    short, place, removal = _source(found["source"])
    there = (thing, LOCATED, place)
    picked: Phrase = [(PICK, thing, short), (PICK, there), (PICK, thing, removal)]
    return [(picked, THEN, PUT, "it", target), [(PUT, there, target), (target, ",", PUT, there)]]


def _put_both(found: re.Match[str]) -> Phrase:
    """'put both the soup and the sauce in the basket'."""
    target = _target(found)
    both: Phrase = BOTH_POTS
    if found["first"]:
        first, second = _the(found["first"]), _the(found["second"])
        pair: Phrase = [(first, "and", second), (second, "and", first)]
        both = [("both", pair), pair]
    return [(PUT, both, target), [(PICK, both, THEN, PUT, "them", target), (target, ",", PUT, both)]]


def _put_alone(found: re.Match[str]) -> Phrase:
    """'put the bowl on the stove'."""
    thing, target = _the(found["thing"]), _target(found)
    return [(PUT, thing, target), [(PICK, thing, THEN, PUT, "it", target), (target, ",", PUT, thing)]]


def _put(found: re.Match[str]) -> Phrase:
    return (PUT, _the(found["thing"]), _target(found))


def _put_there(found: re.Match[str]) -> Phrase:
    """'put the moka pot on it', 'put the bowl inside': the place is that of the order before."""
    there: Phrase = "on it" if found["there"] == "on it" else ["inside", "in it", "inside it", "in there"]
    return (PUT, _the(found["thing"]), there)


def _put_and_close(found: re.Match[str]) -> Phrase:
    """'put the mug in the microwave and close it'."""
    place = "the drawer" if " drawer" in found["place"] else _the(found["place"])
    return (_put(found), AND, CLOSE, ["it", place])


def _open(found: re.Match[str]) -> Phrase:
    return (OPEN, _the(found["thing"]))


def _turn_on(found: re.Match[str]) -> Phrase:
    thing = _the(found["thing"])
    return [((TURN_ON, "on"), thing), (TURN_ON, thing, "on")]


def _push(found: re.Match[str]) -> Phrase:
    return (PUSH, _the(found["thing"]), _target(found))


_PUT = rf"put the (?P<thing>{_THING}) {_TARGET}"
_BOTH = rf"(?:the (?P<first>{_THING}) and the (?P<second>{_THING})|moka pots)"
_Builder = Callable[[re.Match[str]], Phrase]
# What is a whole instruction, and what may also be joined to another by "and".
_SENTENCES: list[tuple[str, _Builder]] = [
    (rf"pick up the (?P<thing>{_THING}) and place it {_TARGET}", _pick_and_place),
    (rf"pick up the (?P<thing>{_THING}) (?P<source>{_SOURCE}) and place it {_TARGET}", _pick_from_and_place),
    (rf"put both {_BOTH} {_TARGET}", _put_both),
    (rf"{_PUT} and close it", _put_and_close),
    (_PUT, _put_alone),
]
_CLAUSES: list[tuple[str, _Builder]] = [
    (_PUT, _put),
    (rf"put the (?P<thing>{_THING}) (?P<there>inside|on it)", _put_there),
    (rf"open the (?P<thing>{_THING})", _open),
    (rf"turn on the (?P<thing>{_THING})", _turn_on),
    (rf"push the (?P<thing>{_THING}) {_TARGET}", _push),
]


def _the(thing: str) -> Phrase:
    return ("the", THINGS[thing])


def _target(found: re.Match[str]) -> Phrase:
    return (REACHED[found["reach"]], _the(found["place"]))


def _source(text: str) -> tuple[Phrase, Phrase, Phrase]:
    """Where a thing lies: right behind the noun, behind "that is", and as where it is taken from."""
    if text == "from table center":
        return ("from", ["table center", TABLE_CENTER]), (["at", "in"], TABLE_CENTER), ("from", TABLE_CENTER)
    if found := re.fullmatch(rf"between the ({_THING}) and the ({_THING})", text):
        first, second = _the(found[1]), _the(found[2])
        pair: Phrase = [(first, "and", second), (second, "and", first)]
        place: Phrase = (PLACES["between"], pair)
        return place, place, ("from between", pair)
    preposition, thing = text.split(" the ", 1)
    place = (PLACES[preposition], _the(thing))
    return place, place, (FROM[preposition], _the(thing))


# --------------------------------------------------------------------------------------------- phrases and sentences


def _draw(phrase: Phrase, draws: Iterator[float]) -> str:
    """One of a phrase's wordings; every choice is uniform, by the next of some numbers in [0, 1)."""
    while isinstance(phrase, list):
        phrase = phrase[int(next(draws) * len(phrase))]
    return phrase if isinstance(phrase, str) else " ".join([_draw(part, draws) for part in phrase])


def _expand(phrase: Phrase) -> Iterator[str]:
    """All wordings of a phrase."""
    if isinstance(phrase, str):
        yield phrase
    elif isinstance(phrase, list):
        for choice in phrase:
            yield from _expand(choice)
    else:
        yield from map(" ".join, itertools.product(*(list(_expand(part)) for part in phrase)))


def _leaves(phrase: Phrase) -> Iterator[str]:
    if isinstance(phrase, str):
        yield phrase
    else:
        for part in phrase:
            yield from _leaves(part)


def _join(words: str) -> str:
    return words.replace(" ,", ",")


def _without_articles(body: str) -> str:
    return re.sub(r"\bthe ", "", body)


def _plain(instruction: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(instruction.lower().split()).removesuffix(".")


def _is_order(instruction: str) -> bool:
    """Whether an unknown instruction is one plain order, so that a frame around it reads well."""
    words = instruction.split()
    return bool(words) and words[0].lower() in VERBS and not re.search(r"[.,:;!?\n]", instruction)


def _frame(order: str, draws: Iterator[float]) -> str:
    """An order as people put it: as it is, politely, or as a question."""
    fronted = order.split(" ", 1)[0].lower() not in VERBS  # "on the plate, put the bowl" follows no "please"
    if fronted or next(draws) < UNFRAMED:
        return _finish(order, ".", draws)
    order = order[0].lower() + order[1:]
    number = int(next(draws) * (len(FRAMES) + len(QUESTIONS)))
    before, behind = (*FRAMES, *QUESTIONS)[number]
    return _finish(_join(f"{before} {order} {behind}").strip(), "." if number < len(FRAMES) else "?", draws)


def _finish(sentence: str, mark: str, draws: Iterator[float]) -> str:
    """A sentence with or without its capital letter and its mark at the end; a mark that it has stays."""
    capital, marked = next(draws) < 0.5, next(draws) < 0.5
    if capital:
        sentence = sentence[:1].upper() + sentence[1:]
    return sentence + mark if marked and sentence[-1:].isalnum() else sentence
