"""OpenVLA's scores and samples against an independent, plain re-implementation."""

import pytest
import torch as th
from openvla_models import as_ids, prompts, single_prompt
from openvla_reference import reference_logits

from vla_agent.bins import GREEDY, Sampling
from vla_agent.openvla import OpenVLA


@th.no_grad()
def test_padded_batch_equals_naive_reference(model, batch):
    output, full, ids = model.score_actions(**batch), model.action_logits(**as_ids(model, batch)), as_ids(model, batch)
    embedded = model.project(model.encode_images(batch["pixel_values"]))
    for row in range(3):
        logits, hidden, patches = reference_logits(
            model, single_prompt(batch, row), batch["pixel_values"][row], ids["action_ids"][row].tolist()
        )
        assert logits.std() > 0.5, "logits too flat for the comparison to mean anything"
        th.testing.assert_close(embedded[row], patches, rtol=0, atol=1e-5)
        th.testing.assert_close(full[row], logits, rtol=0, atol=1e-5)
        th.testing.assert_close(output.logits[row], logits[:, model.action_token_ids], rtol=0, atol=1e-5)
        th.testing.assert_close(output.hidden[row], hidden[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_each_row_of_a_batch_equals_itself_alone(model, batch):
    together = model.score_actions(**batch)
    for row in range(3):
        ids = th.tensor([single_prompt(batch, row)])
        alone = model.score_actions(
            ids, th.ones_like(ids), batch["pixel_values"][row : row + 1], batch["bins"][row : row + 1]
        )
        th.testing.assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-5)
        th.testing.assert_close(together.hidden[row], alone.hidden[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_content_of_padding_does_not_matter(model, batch):
    changed = batch["input_ids"].where(batch["attention_mask"].bool(), th.tensor(7))
    assert not th.equal(changed, batch["input_ids"])
    output = model.score_actions(changed, batch["attention_mask"], batch["pixel_values"], batch["bins"])
    assert th.equal(output.logits, model.score_actions(**batch).logits)


@th.no_grad()
def test_empty_piece_is_appended_per_row_and_only_where_missing(model, batch):
    # Row 0 brings the piece itself, row 1 does not; both must score as without the piece.
    ids, mask = batch["input_ids"][:2, :], batch["attention_mask"][:2]
    lengths = mask.sum(1).tolist()
    longer = th.cat([ids, th.zeros(2, 1, dtype=th.int64)], dim=1)
    longer_mask = th.cat([mask, th.zeros(2, 1, dtype=th.int64)], dim=1)
    longer[0, lengths[0]] = model.config.empty_piece_id
    longer_mask[0, lengths[0]] = 1
    rest = (batch["pixel_values"][:2], as_ids(model, batch)["action_ids"][:2])
    expected = model.action_logits(ids, mask, *rest)
    th.testing.assert_close(model.action_logits(longer, longer_mask, *rest), expected, rtol=0, atol=1e-5)


@th.no_grad()
def test_bin_logits_are_the_action_columns_in_bin_order(model, batch):
    full = model.action_logits(**as_ids(model, batch))
    by_bin = model.score_actions(**batch).logits
    assert full.shape == (3, 7, 1216)
    assert by_bin.shape == (3, 7, 256)
    # vocab_size 1216 - 64 of padding = 1152: bin 0 is id 1151, bin 255 is id 896.
    th.testing.assert_close(by_bin[..., 0], full[..., 1151], rtol=0, atol=1e-5)
    th.testing.assert_close(by_bin[..., 255], full[..., 896], rtol=0, atol=1e-5)
    th.testing.assert_close(by_bin, full[..., model.action_token_ids], rtol=0, atol=1e-5)


@th.no_grad()
def test_cached_greedy_tokens_equal_repeated_full_forwards(model, batch):
    sample = model.sample_actions(*prompts(batch), sampling=GREEDY)
    ids = th.full((3, 7), int(model.action_token_ids[0]))
    for i in range(7):
        logits = model.action_logits(*prompts(batch), ids)
        ids[:, i] = model.action_token_ids[logits[:, i, model.action_token_ids].argmax(-1)]
    assert th.equal(model.action_token_ids[sample.bins], ids)
    assert th.equal(model.generate_actions(*prompts(batch), deterministic=True), ids)


@th.no_grad()
def test_greedy_tokens_equal_naive_reference(model, batch):
    ids = model.generate_actions(*prompts(batch), deterministic=True)
    row = 1
    logits, _, _ = reference_logits(model, single_prompt(batch, row), batch["pixel_values"][row], ids[row].tolist())
    assert th.equal(model.action_token_ids[logits[:, model.action_token_ids].argmax(-1)], ids[row])


@th.no_grad()
@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 2)], ids=["padded", "unpadded"])
def test_sampling_and_scoring_agree(model, batch, rows):
    part = {name: tensor[rows] for name, tensor in batch.items()}
    sample = model.sample_actions(*prompts(part), generator=th.Generator().manual_seed(0))
    scored = model.score_actions(*prompts(part), sample.bins)
    th.testing.assert_close(sample.logits.log_softmax(-1), scored.logits.log_softmax(-1), rtol=0, atol=1e-4)
    th.testing.assert_close(sample.hidden, scored.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("temperature", "agrees"), [(1.0, False), (2.0, True), (3.0, False)])
def test_sampling_follows_the_tempered_distribution(model, batch, temperature, agrees):
    # The logits of the drawn bins have a known mean and variance under each temperature: a z-score over 700 draws.
    rows = {name: tensor[1:2].expand(100, *tensor.shape[1:]) for name, tensor in batch.items()}
    sample = model.sample_actions(
        *prompts(rows), sampling=Sampling(temperature=2.0), generator=th.Generator().manual_seed(0)
    )
    logits = sample.logits.double()
    drawn = logits.gather(2, sample.bins[..., None]).squeeze(2)
    probabilities = th.softmax(logits / temperature, dim=-1)
    mean = (probabilities * logits).sum(-1)
    variance = (probabilities * (logits - mean[..., None]) ** 2).sum(-1)
    z_score = ((drawn - mean).sum() / variance.sum().sqrt()).abs()
    assert (z_score < 3) if agrees else (z_score > 4)


def test_same_generator_seed_gives_same_actions(model, batch):
    draws = [model.generate_actions(*prompts(batch), generator=th.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert th.equal(draws[0], draws[1])
    assert not th.equal(draws[0], draws[2])
    th.manual_seed(3)
    assert th.equal(model.generate_actions(*prompts(batch)), draws[0])


def test_gradient_checkpointing_changes_neither_gradients_nor_sampling(model, batch):
    def gradient() -> th.Tensor:
        model.zero_grad()
        model.score_actions(**batch).logits.square().mean().backward()
        return model.language_model.model.layers[0].mlp.up_proj.weight.grad.clone()

    plain, greedy = gradient(), model.generate_actions(*prompts(batch), deterministic=True)
    model.train()
    model.set_gradient_checkpointing(True)
    try:
        th.testing.assert_close(gradient(), plain)
        assert th.equal(model.generate_actions(*prompts(batch), deterministic=True), greedy)
        assert all(module.training for module in model.modules())
    finally:
        model.set_gradient_checkpointing(False)
        model.eval()
        model.zero_grad(set_to_none=True)


def test_unused_parameters_are_exactly_those_without_gradient(model, batch):
    model.zero_grad(set_to_none=True)
    output = model.score_actions(**batch)
    (output.logits.square().mean() + output.hidden.sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    assert sorted(without) == sorted(model.unused_parameter_names())
    assert any("attn_pool" in name for name in without)


def test_rotary_frequencies_survive_bfloat16(model):
    exact = model.language_model.model.rotary_emb.inv_freq.clone()
    half = OpenVLA.from_pretrained("tiny", dtype=th.bfloat16)
    assert th.equal(half.language_model.model.rotary_emb.inv_freq, exact)
    moved = OpenVLA.from_pretrained("tiny").to(th.bfloat16)
    assert moved.dtype == th.bfloat16
    assert th.equal(moved.language_model.model.rotary_emb.inv_freq, exact)
    assert exact.dtype == th.float32


def test_bfloat16_stays_near_float32(batch):
    single, half = (OpenVLA.from_pretrained("tiny", dtype=dtype) for dtype in (th.float32, th.bfloat16))
    with th.no_grad():
        difference = single.action_logits(**as_ids(single, batch)) - half.action_logits(**as_ids(half, batch)).float()
    assert 0 < difference.abs().max() < 0.1


@th.no_grad()
def test_chains_of_one_observation_share_the_pass_over_its_prompt(model, batch):
    passes = []
    handle = model.vision_backbone.register_forward_hook(lambda *_: passes.append("image"))
    widths = []
    layer = model.language_model.model.layers[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape))
    try:
        bins = model.sample_candidates(*prompts(batch), n_samples=5).bins
        prefill, *steps = widths
        assert passes == ["image"]
        assert prefill[0] == 3
        assert [tuple(shape[:2]) for shape in steps] == [(15, 1)] * 6
        widths.clear()
        model.score_candidates(*prompts(batch), bins=bins)
        assert [shape[0] for shape in widths] == [3, 15]
        assert passes == ["image"] * 2
    finally:
        handle.remove()
        layer.remove()
