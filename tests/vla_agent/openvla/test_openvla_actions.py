"""From images and instructions to actions in the data's units."""

import numpy as np
import torch as th
from openvla_models import INSTRUCTIONS, prompts

from vla_agent.openvla import OpenVLA, load_processor, tiny_config


def test_predict_action_decodes_greedy_tokens_with_the_statistics(model, batch):
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    actions = model.predict_action(images, INSTRUCTIONS, unnorm_key="libero")
    bins = 1151 - model.generate_actions(*prompts(batch), deterministic=True).numpy()
    normalised = np.minimum(bins, 254) * 2 / 255 - 254 / 255
    stats = model.config.norm_stats["libero"]["action"]
    q01, q99 = np.array(stats["q01"]), np.array(stats["q99"])
    expected = 0.5 * (normalised + 1) * (q99 - q01) + q01
    np.testing.assert_allclose(actions[:, :6], expected[:, :6], rtol=0, atol=1e-12)
    np.testing.assert_allclose(actions[:, 6], normalised[:, 6], rtol=0, atol=1e-12)


def test_predict_action_transforms_images_and_repeats_one_instruction(model):
    images = np.random.default_rng(1).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    flipped = model.predict_action(images, "open the drawer", image_transform=lambda x: x[:, ::-1])
    direct = model.predict_action(images[:, ::-1], ["open the drawer"] * 2)
    np.testing.assert_array_equal(flipped, direct)
    assert flipped.shape == (2, 7)


def test_chunks_multiply_the_action_tokens():
    config = tiny_config()
    config.action_chunk_size = 2
    th.manual_seed(0)
    model = OpenVLA(config, load_processor("tiny")).eval()
    images = np.zeros((1, 112, 112, 3), dtype=np.uint8)
    assert model.n_action_tokens == 14
    assert model.predict_action(images, "open the drawer").shape == (1, 2, 7)
