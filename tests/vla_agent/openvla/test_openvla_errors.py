"""What callers of OpenVLA can get wrong is named."""

import numpy as np
import pytest
import torch as th
from openvla_models import prompts

from vla_agent.openvla import OpenVLA, OpenVLAConfig, tiny_config


def test_wrong_tensors_are_named(model, batch):
    ids, mask, pixels = prompts(batch)
    with pytest.raises(ValueError, match=r"action_ids must have shape \(3, 7\), got \(3, 6\)"):
        model.action_logits(ids, mask, pixels, batch["bins"][:, :6])
    with pytest.raises(ValueError, match=r"bins must have shape \(3, 7\), got \(3, 6\)"):
        model.score_actions(ids, mask, pixels, batch["bins"][:, :6])
    for bins in (batch["bins"], batch["bins"][:, None, :6], batch["bins"][:2, None], batch["bins"][:, None][:, :0]):
        with pytest.raises(ValueError, match=r"bins must have shape \(3, n, 7\), got "):
            model.score_candidates(ids, mask, pixels, bins)
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(batch, 6, 112, 112\)"):
        model.sample_actions(ids, mask, pixels[:, :3])
    with pytest.raises(ValueError, match="Got 3 prompts but pixel_values of 2 images"):
        model.sample_actions(ids, mask, pixels[:2])
    with pytest.raises(ValueError, match="padded on the right"):
        model.sample_actions(ids.flip(1), mask.flip(1), pixels)
    with pytest.raises(ValueError, match=r"must both have shape \(batch, length\)"):
        model.sample_actions(ids, mask[:, 1:], pixels)
    with pytest.raises(ValueError, match="temperature=0; expected a number above 0"):
        model.generate_actions(ids, mask, pixels, temperature=0)


@pytest.mark.parametrize("wrong", [-1, -256, 256, 300])
def test_a_number_that_is_no_bin_is_not_scored(model, batch, wrong):
    inputs = prompts(batch)
    bins = th.full((3, 7), 255)
    bins[1, 6] = wrong
    with pytest.raises(ValueError, match=rf"^bins must be whole numbers from 0 to 255; got {wrong}\.$"):
        model.score_actions(*inputs, bins)
    with pytest.raises(ValueError, match=rf"^bins must be whole numbers from 0 to 255; got {wrong}\.$"):
        model.score_candidates(*inputs, bins[:, None])
    with pytest.raises(ValueError, match=r"^bins must be whole numbers from 0 to 255, int64; got torch\.uint8\.$"):
        model.score_actions(*inputs, th.zeros(3, 7, dtype=th.uint8))


def test_prompt_beyond_the_context_is_refused(model):
    images = np.zeros((1, 112, 112, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"tokens, but the model's context is 512; shorten the instruction"):
        model.predict_action(images, "very " * 500)


def test_wrong_instructions_are_named(model):
    with pytest.raises(TypeError, match="got a single string; put it into a list"):
        model.tokenize("open the drawer")
    with pytest.raises(TypeError, match="An instruction must be a string, got int"):
        model.tokenize([3])
    with pytest.raises(ValueError, match="at least one instruction"):
        model.tokenize([])
    with pytest.raises(ValueError, match="Got 1 images but 2 instructions"):
        model.predict_action(np.zeros((1, 112, 112, 3), dtype=np.uint8), ["a", "b"])
    with pytest.raises(ValueError, match="built without a processor"):
        OpenVLA(tiny_config()).tokenize(["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"timm_model_ids": ["vit_huge", "vit_so400m_patch14_siglip_224"], "vision_tower_sizes": None},
            "Unknown vision",
        ),
        ({"image_sizes": [112]}, "needs 2 timm_model_ids and image_sizes"),
        ({"image_sizes": [112, 110]}, "by the patch size 14"),
        ({"n_action_bins": 128}, "n_action_bins must be 256, got 128"),
        ({"decoding": "both"}, "decoding must be 'autoregressive' or 'parallel', got 'both'"),
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"action_chunk_size": 0}, "action_chunk_size must be at least 1"),
        ({"vision_tower_sizes": [{"embed_dim": 96}] * 2}, "lacks depth, num_heads"),
        ({"text_config": {"model_type": "qwen2"}}, "language model is 'qwen2', but only 'llama'"),
    ],
)
def test_impossible_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig.from_dict({**tiny_config().to_dict(), **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_id": None}, "path_or_id=None; expected a path"),
        ({"path_or_id": 5}, "path_or_id=5; expected a path"),
        ({"path_or_id": "tiny", "dtype": "int8"}, "dtype='int8'; expected a floating type of torch"),
        ({"path_or_id": "tiny", "dtype": th.int64}, r"dtype=torch\.int64; expected a floating type of torch"),
    ],
)
def test_wrong_arguments_of_loading_are_told(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        OpenVLA.from_pretrained(**arguments)
