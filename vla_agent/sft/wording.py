"""What a training step's examples are told: their instructions in other words, and the tag's word behind them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from vla_agent.openvla.processor import with_word
from vla_agent.sft.data import Examples
from vla_agent.sft.paraphrases import reword
from vla_agent.sft.tags import Tags


def word_examples(
    examples: Examples, step: int, seed: int, paraphrase: float, known: Collection[str], tags: Tags | None
) -> Examples:
    """The examples of a training step as their prompts say them; a function of the seed and the step.

    Args:
        examples: The examples.
        step: The step's number, from 0.
        seed: The training's seed.
        paraphrase: Probability that an instruction is said in other words.
        known: All instructions of the data, which no other words may become.
        tags: The tag, of whose words some are dropped, so that the model also learns what it does without.
    """
    instructions = examples.instructions
    if paraphrase:
        # Numbers of their own: the batches' order takes two numbers, and the third tells what is drawn here.
        generator = np.random.default_rng([seed, step, 1])
        instructions = reword(instructions, paraphrase, generator, known)
    if tags is not None and examples.tagged is not None:
        kept = np.random.default_rng([seed, step, 2]).random(len(instructions)) >= tags.dropout
        return tag_examples(examples._replace(instructions=instructions, tagged=examples.tagged & kept), tags)
    return examples._replace(instructions=instructions)


def tag_examples(examples: Examples, tags: Tags | None) -> Examples:
    """The examples with the tag's word behind the instructions of those that are tagged."""
    if tags is None or examples.tagged is None:
        return examples
    told = zip(examples.instructions, examples.tagged, strict=True)
    return examples._replace(instructions=[with_word(text, tags.word if good else "") for text, good in told])
