"""Chunks by parallel decoding: all action tokens of two cameras and the robot's state in one pass."""

import numpy as np
import pytest
import torch as th
from openvla_models import prompts, single_prompt
from openvla_reference import reference_parallel_logits

from vla_agent.bins import GREEDY
from vla_agent.openvla import OpenVLA


@th.no_grad()
def test_parallel_decoding_equals_naive_reference(parallel):
    model, inputs = parallel
    sample = model.sample_actions(**inputs, sampling=GREEDY)
    assert sample.bins.shape == (3, 56)
    assert sample.logits.shape == (3, 56, 256)
    for row in range(3):
        logits = reference_parallel_logits(
            model, single_prompt(inputs, row), inputs["pixel_values"][row], inputs["state"][row]
        )
        assert logits.std() > 0.3
        expected = logits[:, model.action_token_ids]
        th.testing.assert_close(sample.logits[row], expected, rtol=0, atol=1e-5)
        assert th.equal(sample.bins[row], expected.argmax(-1))


@th.no_grad()
def test_unpadded_parallel_batches_attend_both_ways_too(parallel):
    model, inputs = parallel
    together = model.sample_actions(**inputs, sampling=GREEDY)
    ids = th.tensor([single_prompt(inputs, 1)])
    rest = {name: inputs[name][1:2] for name in ("pixel_values", "state")}
    alone = model.sample_actions(ids, th.ones_like(ids), **rest, sampling=GREEDY)
    th.testing.assert_close(together.logits[1], alone.logits[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_parallel_scores_do_not_depend_on_the_actions(parallel):
    model, inputs = parallel
    sample = model.sample_actions(**inputs, generator=th.Generator().manual_seed(0))
    scores = model.score_actions(**inputs, bins=sample.bins)
    th.testing.assert_close(scores.logits, sample.logits, rtol=0, atol=1e-5)
    th.testing.assert_close(scores.hidden, sample.hidden, rtol=0, atol=1e-5)
    assert len(set(sample.bins[0].tolist())) > 20


def test_state_and_second_camera_reach_the_actions_and_the_gradient(parallel):
    model, inputs = parallel
    ids = model.action_token_ids[th.zeros(3, 56, dtype=th.int64)]
    model.score_actions(**inputs, bins=th.zeros(3, 56, dtype=th.int64)).logits.square().mean().backward()
    assert model.proprio_projector.fc1.weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)
    with th.no_grad():
        before = model.action_logits(**inputs, action_ids=ids)
        dark = inputs["pixel_values"].clone()
        dark[:, 6:] = 0
        assert not th.allclose(model.action_logits(**{**inputs, "pixel_values": dark}, action_ids=ids), before)


def test_parallel_checkpoints_round_trip_and_predict_chunks(parallel, tmp_path):
    model, _ = parallel
    model.save_pretrained(tmp_path / "oft")
    loaded = OpenVLA.from_pretrained(tmp_path / "oft")
    images = np.random.default_rng(3).integers(0, 256, (2, 2, 112, 112, 3), dtype=np.uint8)
    arguments = {"instructions": "open the drawer", "wrist_images": images[1], "state": np.ones((2, 8))}
    actions = loaded.predict_action(images[0], **arguments)
    assert actions.shape == (2, 8, 7)
    np.testing.assert_array_equal(actions, model.predict_action(images[0], **arguments))
    with pytest.raises(ValueError, match=r"takes state of shape \(2, 8\), got None"):
        loaded.predict_action(images[0], "open the drawer", wrist_images=images[1])
    with pytest.raises(ValueError, match="takes images of 2 cameras, got 1"):
        loaded.predict_action(images[0], "open the drawer", state=np.ones((2, 8)))


def test_states_are_scaled_by_their_quantiles_and_clipped(parallel, model):
    processor = parallel[0].processor
    scaled = processor.normalize_state(np.array([[0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 1.5, 1.0]]))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[-1, 0, 1, 1, -1, -0.5, 0.5, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="'proprio' statistics, which describe 0 numbers"):
        model.processor.normalize_state(np.zeros((1, 8)))


def test_state_is_refused_where_the_model_takes_none(model, batch):
    with pytest.raises(ValueError, match="takes no state"):
        model.sample_actions(*prompts(batch), state=th.zeros(3, 8))
