"""Decisions of recorded episodes, such as ``libero-vla record --policy`` writes, for a critic to learn from."""

from __future__ import annotations

import numpy as np
import torch as th
from tqdm import tqdm

from vla_agent.action_tokens import to_bins
from vla_agent.backbone import model_inputs
from vla_agent.sft.data import ActionChunks
from vla_agent.test_time.decisions import Decisions
from vla_agent.test_time.scorers import CandidatePolicy

_ENCODED_AT_ONCE = 64  # frames; part of the result, because the size of a batch changes a product's last bits


@th.no_grad()
def recorded_decisions(policy: CandidatePolicy, data: ActionChunks, *, progress_bar: bool = False) -> Decisions:
    """What was decided in recorded episodes, from their first frame on, a chunk at a time.

    Frames have been through a video's compression, so hidden states differ a little from those of played episodes.

    Args:
        policy: The policy whose hidden states a critic is to read.
        data: The episodes, with what their actions earned; frames in chunks of the policy's length.
        progress_bar: Whether to show a bar on a terminal.

    Raises:
        ValueError: If the episodes record no rewards, or frames of them were left out.
    """
    outcomes, backbone = data.outcomes, policy.backbone
    if outcomes is None:
        raise ValueError(
            "A critic learns what actions earned, and these episodes record no rewards; record them anew, with "
            "libero-vla record --policy."
        )
    if data.cut_waiting:
        raise ValueError("A critic learns of chunks as they were executed; read the episodes with cut_waiting=False.")
    frames = np.flatnonzero(outcomes.times % backbone.config.action_chunk_size == 0)
    codec, stats = backbone.processor.codec(policy.unnorm_key), backbone.processor.action_stats(policy.unnorm_key)
    hidden, bins = [], []
    starts = range(0, len(frames), _ENCODED_AT_ONCE)
    for start in tqdm(starts, "encoding", unit="batch", disable=None if progress_bar else True):
        examples = data[frames[start : start + _ENCODED_AT_ONCE]]
        prompts = [codec.encode_prompt(*told) for told in zip(examples.instructions, examples.state, strict=True)]
        ids, mask = (
            th.nn.utils.rnn.pad_sequence([th.from_numpy(prompt[part]) for prompt in prompts], batch_first=True)
            for part in (0, 1)
        )
        images = [th.from_numpy(shown).to(backbone.device) for shown in examples.images]
        prompt = ids.to(backbone.device), mask.to(backbone.device)
        inputs = model_inputs(backbone, *prompt, images, examples.state, policy.unnorm_key)
        hidden.append(backbone.encode_observations(**inputs).float().cpu().numpy())
        bins.append(to_bins(examples.actions, stats).reshape(len(examples.actions), -1).astype(np.uint8))
    episodes = outcomes.episode_ids[frames]
    return Decisions(np.concatenate(hidden), np.concatenate(bins), episodes, outcomes.successes[episodes])
