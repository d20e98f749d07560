"""Instructions as tokens: every prompt is encoded once, so that nothing behind the environments sees a string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from vla_agent.backbone import Codec

# Prompts are padded to a multiple of this, so that all suites share one observation space; models trim the padding.
PROMPT_MULTIPLE = 64


class PromptTable:
    """Prompts of all instructions that can occur.

    Args:
        instructions: The instructions; repeated ones count once.
        codec: The model's codec, which writes the prompts.
    """

    def __init__(self, instructions: Sequence[str], codec: Codec) -> None:
        self._rows = {instruction: row for row, instruction in enumerate(dict.fromkeys(instructions))}
        prompts = [codec.encode_prompt(instruction) for instruction in self._rows]
        longest = max(len(ids) for ids, _ in prompts)
        length = longest + -longest % PROMPT_MULTIPLE
        self._ids = np.zeros((len(prompts), length), dtype=np.int64)
        self._mask = np.zeros_like(self._ids)
        for row, (ids, mask) in enumerate(prompts):
            self._ids[row, : len(ids)], self._mask[row, : len(mask)] = ids, mask

    def look_up(
        self, instructions: Sequence[str], infos: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 (n, L), of the instructions that n environments show.

        Args:
            instructions: One instruction per environment.
            infos: Gymnasium's batched infos; their ``task_id`` names the task in the error message.

        Raises:
            ValueError: If an instruction has no prompt.
        """
        for row, instruction in enumerate(instructions):
            if instruction not in self._rows:
                task_ids = (infos or {}).get("task_id")
                task = "" if task_ids is None else f" of task {task_ids[row]}"
                raise ValueError(
                    f"Environment {row} shows the instruction {instruction!r}{task}, which is none of the "
                    f"{len(self._rows)} that were tokenised. Name the task in make_vec_env's task_id, or give "
                    "VLAVecEnv all instructions."
                )
        rows = [self._rows[instruction] for instruction in instructions]
        return self._ids[rows], self._mask[rows]

    def spaces(self) -> dict[str, spaces.Box]:
        """Spaces of one environment's `input_ids` and `attention_mask`, int64 (L,)."""
        shape = self._ids.shape[1:]
        ids = spaces.Box(0, np.iinfo(np.int32).max, shape, np.int64)
        return {"input_ids": ids, "attention_mask": spaces.Box(0, 1, shape, np.int64)}
