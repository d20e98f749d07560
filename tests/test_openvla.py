"""OpenVLA against an independent, plain re-implementation, and its checkpoints against the published layout.

The reference below is written from the architecture's description: one sample at a time, no padding, no cache, loops
over heads, tensors taken by their published names.
"""

import gzip
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from safetensors.torch import load_file, save_file

from vla_agent.openvla import CheckpointError, OpenVLA, OpenVLAConfig, load_processor, tiny_config
from vla_agent.openvla.checkpoint import _check_memory
from vla_agent.openvla.folder import TINY_FOLDER
from vla_agent.openvla.tiny import write_tiny

INSTRUCTIONS = [
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "open the drawer",
    "Öffne die Schublade №7 …",
]
Tensors = dict[str, th.Tensor]


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    """The tiny model with every bias, scale and head weight away from its special initial value."""
    model = OpenVLA.from_pretrained("tiny")
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for name, parameter in model.named_parameters():
            strength = 0.1 if name.endswith("lm_head.weight") else 0.05
            parameter.add_(th.randn(parameter.shape, generator=generator), alpha=strength)
    return model


@pytest.fixture(scope="module")
def batch(model) -> dict[str, th.Tensor]:
    """Three prompts of different length with noise images and arbitrary actions."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    input_ids, attention_mask = model.tokenize(INSTRUCTIONS)
    action_ids = model.action_token_ids[th.from_numpy(rng.integers(0, 256, (3, 7)))]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": model.preprocess(images),
        "action_ids": action_ids,
    }


def prompts(batch: dict[str, th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    return batch["input_ids"], batch["attention_mask"], batch["pixel_values"]


# --- The reference: naive, one sample at a time -------------------------------------------------------------------


def linear(x: th.Tensor, tensors: Tensors, name: str) -> th.Tensor:
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def layer_norm(x: th.Tensor, tensors: Tensors, name: str) -> th.Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / th.sqrt((centered**2).mean(-1, keepdim=True) + 1e-6)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def rms_norm(x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    return x / th.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def gelu(x: th.Tensor) -> th.Tensor:
    return 0.5 * x * (1 + th.erf(x / math.sqrt(2)))


def attend(q: th.Tensor, k: th.Tensor, v: th.Tensor, n_heads: int, causal: bool) -> th.Tensor:
    """Attention of (T, C) tensors, head after head."""
    width = q.shape[1] // n_heads
    outputs = []
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        if causal:
            scores = scores + th.full_like(scores, -math.inf).triu(1)
        outputs.append(th.softmax(scores, dim=-1) @ v[:, part])
    return th.cat(outputs, dim=1)


def reference_tower(pixels: th.Tensor, tensors: Tensors, name: str, n_heads: int) -> th.Tensor:
    """Patch features (P, C) of one image (3, H, W)."""
    kernel = tensors[f"{name}.patch_embed.proj.weight"]
    patches = pixels.unfold(1, 14, 14).unfold(2, 14, 14)  # (3, rows, columns, 14, 14)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * 14 * 14)
    x = patches @ kernel.reshape(len(kernel), -1).T + tensors[f"{name}.patch_embed.proj.bias"]
    x = x + tensors[f"{name}.pos_embed"][0]
    n_prefix = 0
    if f"{name}.cls_token" in tensors:
        prefix = th.cat([tensors[f"{name}.cls_token"][0], tensors[f"{name}.reg_token"][0]])
        n_prefix = len(prefix)
        x = th.cat([prefix, x])
    depth = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith(f"{name}.blocks."))
    for i in range(depth - 1):
        block = f"{name}.blocks.{i}"
        q, k, v = linear(layer_norm(x, tensors, f"{block}.norm1"), tensors, f"{block}.attn.qkv").chunk(3, dim=1)
        y = linear(attend(q, k, v, n_heads, causal=False), tensors, f"{block}.attn.proj")
        x = x + y * tensors.get(f"{block}.ls1.scale_factor", th.ones(1))
        y = gelu(linear(layer_norm(x, tensors, f"{block}.norm2"), tensors, f"{block}.mlp.fc1"))
        x = x + linear(y, tensors, f"{block}.mlp.fc2") * tensors.get(f"{block}.ls2.scale_factor", th.ones(1))
    return x[n_prefix:]


def rotate(x: th.Tensor, n_heads: int) -> th.Tensor:
    """Rotary positions 0..T-1 on (T, C), halves of each head paired."""
    T, width = len(x), x.shape[1] // n_heads
    angles = th.arange(T)[:, None] / 10000 ** (th.arange(0, width, 2) / width)
    heads = x.reshape(T, n_heads, width)
    first, second = heads[..., : width // 2], heads[..., width // 2 :]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return th.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).reshape(T, -1)


def reference_patches(model: OpenVLA, pixels: th.Tensor) -> th.Tensor:
    """Embedded patches (P, D) of one image (6, H, W)."""
    tensors = model.state_dict()
    towers = ["vision_backbone.featurizer", "vision_backbone.fused_featurizer"]
    features = [
        reference_tower(part, tensors, name, tower.num_heads)
        for part, name, tower in zip(pixels.split(3), towers, model.config.towers, strict=True)
    ]
    x = th.cat(features, dim=1)
    x = gelu(linear(x, tensors, "projector.fc1"))
    x = gelu(linear(x, tensors, "projector.fc2"))
    return linear(x, tensors, "projector.fc3")


def reference_llama(model: OpenVLA, x: th.Tensor, causal: bool) -> th.Tensor:
    """Hidden states (T, D) behind the final norm of embeddings (T, D)."""
    tensors = model.state_dict()
    heads = model.config.text_config["num_attention_heads"]
    for i in range(model.config.text_config["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}"
        y = rms_norm(x, tensors[f"{layer}.input_layernorm.weight"])
        q, k, v = (linear(y, tensors, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        y = attend(rotate(q, heads), rotate(k, heads), v, heads, causal)
        x = x + linear(y, tensors, f"{layer}.self_attn.o_proj")
        y = rms_norm(x, tensors[f"{layer}.post_attention_layernorm.weight"])
        gate = linear(y, tensors, f"{layer}.mlp.gate_proj")
        y = gate * th.sigmoid(gate) * linear(y, tensors, f"{layer}.mlp.up_proj")
        x = x + linear(y, tensors, f"{layer}.mlp.down_proj")
    return rms_norm(x, tensors["language_model.model.norm.weight"])


def reference_logits(model: OpenVLA, prompt: list[int], pixels: th.Tensor, actions: list[int]) -> tuple:
    """Logits (len(actions), V) that predict the actions, hidden states there, and embedded patches of one sample."""
    tensors = model.state_dict()
    patches = reference_patches(model, pixels)
    if prompt[-1] != model.config.empty_piece_id:
        prompt = [*prompt, model.config.empty_piece_id]
    words = tensors["language_model.model.embed_tokens.weight"][th.tensor(prompt + actions[:-1])]
    x = th.cat([words[:1], patches, words[1:]])
    hidden = reference_llama(model, x, causal=True)[-len(actions) :]
    return hidden @ tensors["language_model.lm_head.weight"].T, hidden, patches


def reference_parallel_logits(model: OpenVLA, prompt: list[int], pixels: th.Tensor, state: th.Tensor) -> th.Tensor:
    """Logits (N, V) of one sample of two images (12, H, W) and a normalised state (8,), all tokens at once."""
    tensors = model.state_dict()
    patches = [reference_patches(model, image) for image in pixels.split(6)]
    robot = gelu(linear(state, tensors, "proprio_projector.fc1"))
    robot = linear(robot, tensors, "proprio_projector.fc2")[None]
    table = tensors["language_model.model.embed_tokens.weight"]
    words = table[th.tensor([*prompt, model.config.empty_piece_id])]
    n_tokens = model.n_action_tokens
    x = th.cat([words[:1], *patches, robot, words[1:], th.zeros(n_tokens, table.shape[1]), table[2:3]])
    first = len(x) - 1 - n_tokens  # first placeholder; the one before it predicts the first token
    hidden = reference_llama(model, x, causal=False)[first - 1 : first - 1 + n_tokens]
    return hidden @ tensors["language_model.lm_head.weight"].T


def single_prompt(batch: dict[str, th.Tensor], row: int) -> list[int]:
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


# --- Exactness ----------------------------------------------------------------------------------------------------


@th.no_grad()
def test_padded_batch_equals_naive_reference(model, batch):
    output = model.score_actions(**batch)
    embedded = model.project(model.encode_images(batch["pixel_values"]))
    for row in range(3):
        logits, hidden, patches = reference_logits(
            model, single_prompt(batch, row), batch["pixel_values"][row], batch["action_ids"][row].tolist()
        )
        assert logits.std() > 0.5, "logits too flat for the comparison to mean anything"
        th.testing.assert_close(embedded[row], patches, rtol=0, atol=1e-5)
        th.testing.assert_close(output.logits[row], logits, rtol=0, atol=1e-5)
        th.testing.assert_close(output.hidden[row], hidden[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_each_row_of_a_batch_equals_itself_alone(model, batch):
    together = model.score_actions(**batch)
    for row in range(3):
        ids = th.tensor([single_prompt(batch, row)])
        alone = model.score_actions(
            ids, th.ones_like(ids), batch["pixel_values"][row : row + 1], batch["action_ids"][row : row + 1]
        )
        th.testing.assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-5)
        th.testing.assert_close(together.hidden[row], alone.hidden[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_content_of_padding_does_not_matter(model, batch):
    changed = batch["input_ids"].where(batch["attention_mask"].bool(), th.tensor(7))
    assert not th.equal(changed, batch["input_ids"])
    output = model.score_actions(changed, batch["attention_mask"], batch["pixel_values"], batch["action_ids"])
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
    rest = (batch["pixel_values"][:2], batch["action_ids"][:2])
    expected = model.action_logits(ids, mask, *rest)
    th.testing.assert_close(model.action_logits(longer, longer_mask, *rest), expected, rtol=0, atol=1e-5)


@th.no_grad()
def test_bin_logits_are_the_action_columns_in_bin_order(model, batch):
    full = model.score_actions(**batch).logits
    by_bin = model.score_actions(**batch, bins_only=True).logits
    assert full.shape == (3, 7, 1216)
    assert by_bin.shape == (3, 7, 256)
    # vocab_size 1216 - 64 of padding = 1152: bin 0 is id 1151, bin 255 is id 896.
    th.testing.assert_close(by_bin[..., 0], full[..., 1151], rtol=0, atol=1e-5)
    th.testing.assert_close(by_bin[..., 255], full[..., 896], rtol=0, atol=1e-5)
    th.testing.assert_close(by_bin, full[..., model.action_token_ids], rtol=0, atol=1e-5)


@th.no_grad()
def test_cached_greedy_tokens_equal_repeated_full_forwards(model, batch):
    sample = model.sample_actions(*prompts(batch), deterministic=True)
    ids = th.full((3, 7), int(model.action_token_ids[0]))
    for i in range(7):
        logits = model.action_logits(*prompts(batch), ids)
        ids[:, i] = model.action_token_ids[logits[:, i, model.action_token_ids].argmax(-1)]
    assert th.equal(sample.action_ids, ids)
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
    scored = model.score_actions(*prompts(part), sample.action_ids, bins_only=True)
    th.testing.assert_close(sample.logits.log_softmax(-1), scored.logits.log_softmax(-1), rtol=0, atol=1e-4)
    th.testing.assert_close(sample.hidden, scored.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("temperature", "agrees"), [(1.0, False), (2.0, True), (3.0, False)])
def test_sampling_follows_the_tempered_distribution(model, batch, temperature, agrees):
    # The logits of the drawn bins have a known mean and variance under each temperature: a z-score over 700 draws.
    rows = {name: tensor[1:2].expand(100, *tensor.shape[1:]) for name, tensor in batch.items()}
    sample = model.sample_actions(*prompts(rows), temperature=2.0, generator=th.Generator().manual_seed(0))
    logits = sample.logits.double()
    drawn = logits.gather(2, (model.config.vocab_size - 1 - sample.action_ids)[..., None]).squeeze(2)
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
        model.score_actions(**batch, bins_only=True).logits.square().mean().backward()
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
        difference = single.action_logits(**batch) - half.action_logits(**batch).float()
    assert 0 < difference.abs().max() < 0.1


# --- Chunks by parallel decoding ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> tuple[OpenVLA, dict[str, th.Tensor]]:
    """A model of 8-step chunks from two cameras and the robot's state, and a batch for it."""
    config = tiny_config()
    config.action_chunk_size, config.decoding, config.num_images, config.use_state = 8, "parallel", 2, True
    config.norm_stats["libero"]["proprio"] = {"q01": [0.0] * 8, "q99": [2.0] * 8}
    folder = tmp_path_factory.mktemp("parallel")
    write_tiny(folder, config=config)
    model = OpenVLA.from_pretrained(folder)
    generator = th.Generator().manual_seed(2)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(th.randn(parameter.shape, generator=generator), alpha=0.05)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 112, 112, 3), dtype=np.uint8)
    input_ids, attention_mask = model.tokenize(INSTRUCTIONS)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": model.preprocess(*images),
        "state": th.from_numpy(rng.uniform(-1, 1, (3, 8)).astype(np.float32)),
    }
    return model, inputs


@th.no_grad()
def test_parallel_decoding_equals_naive_reference(parallel):
    model, inputs = parallel
    sample = model.sample_actions(**inputs, deterministic=True)
    assert sample.action_ids.shape == (3, 56)
    assert sample.logits.shape == (3, 56, 256)
    for row in range(3):
        logits = reference_parallel_logits(
            model, single_prompt(inputs, row), inputs["pixel_values"][row], inputs["state"][row]
        )
        assert logits.std() > 0.3
        expected = logits[:, model.action_token_ids]
        th.testing.assert_close(sample.logits[row], expected, rtol=0, atol=1e-5)
        assert th.equal(sample.action_ids[row], model.action_token_ids[expected.argmax(-1)])


@th.no_grad()
def test_unpadded_parallel_batches_attend_both_ways_too(parallel):
    model, inputs = parallel
    together = model.sample_actions(**inputs, deterministic=True)
    ids = th.tensor([single_prompt(inputs, 1)])
    rest = {name: inputs[name][1:2] for name in ("pixel_values", "state")}
    alone = model.sample_actions(ids, th.ones_like(ids), **rest, deterministic=True)
    th.testing.assert_close(together.logits[1], alone.logits[0], rtol=0, atol=1e-5)


@th.no_grad()
def test_parallel_scores_do_not_depend_on_the_actions(parallel):
    model, inputs = parallel
    sample = model.sample_actions(**inputs, generator=th.Generator().manual_seed(0))
    scores = model.score_actions(**inputs, action_ids=sample.action_ids, bins_only=True)
    th.testing.assert_close(scores.logits, sample.logits, rtol=0, atol=1e-5)
    th.testing.assert_close(scores.hidden, sample.hidden, rtol=0, atol=1e-5)
    assert len(set(sample.action_ids[0].tolist())) > 20


def test_state_and_second_camera_reach_the_actions_and_the_gradient(parallel):
    model, inputs = parallel
    ids = model.action_token_ids[th.zeros(3, 56, dtype=th.int64)]
    model.score_actions(**inputs, action_ids=ids, bins_only=True).logits.square().mean().backward()
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


# --- Actions ------------------------------------------------------------------------------------------------------


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


# --- Processor ----------------------------------------------------------------------------------------------------


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
    assert load_processor("tiny").max_prompt_length(INSTRUCTIONS) == lengths.max()


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


# --- Checkpoints --------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_published_7b():
    path = Path(__file__).parent / "data" / "openvla_7b_tensors.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    config = OpenVLAConfig(
        timm_model_ids=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        image_sizes=[224, 224],
        text_config={"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    )
    with th.device("meta"):
        model = OpenVLA(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    assert config.llama.rms_norm_eps == 1e-6
    assert config.llama.max_position_embeddings == 2048
    assert model.action_token_ids[[0, 255]].device.type == "meta"
    assert config.vocab_size == 32000


def test_tiny_recipe_is_reproducible(tmp_path):
    write_tiny(tmp_path / "again")
    for path in TINY_FOLDER.iterdir():
        if path.name != "model.safetensors":  # training may have moved the shipped weights
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    write_tiny(tmp_path / "third")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "third"))
    assert first == second
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) < 12e6


def test_initial_action_distribution_is_broad(tmp_path, batch):
    write_tiny(tmp_path / "fresh")
    sample = OpenVLA.from_pretrained(tmp_path / "fresh").sample_actions(*prompts(batch))
    log_probs = sample.logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert entropy.min() > 0.95 * math.log(256)


@pytest.mark.parametrize("max_shard_size", [10**9, 10**6], ids=["single", "sharded"])
def test_save_and_load_round_trip_is_bit_equal(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    loaded = OpenVLA.from_pretrained(tmp_path / "saved")
    state = loaded.state_dict()
    assert all(th.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert loaded.config.to_dict() == model.config.to_dict()
    assert loaded.processor.files == model.processor.files
    assert not list(tmp_path.glob(".saved*")), "temporary folders must be gone"
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    if max_shard_size == 10**9:
        assert shards == ["model.safetensors"]
    else:
        assert len(shards) > 5
        index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(state)
        assert set(index["weight_map"].values()) == set(shards)


def test_saving_over_a_checkpoint_leaves_no_stale_shards_and_keeps_foreign_files(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path / "run", max_shard_size=10**6)
    model.save_pretrained(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {name for name in names if "model" in name} == {"model.safetensors"}
    assert "notes.txt" in names
    OpenVLA.from_pretrained(tmp_path / "run")


def test_published_config_survives_a_round_trip():
    published = {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {"libero_spatial": {"action": {"q01": [0.0], "q99": [1.0]}, "num_transitions": 3}},
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
    }
    assert OpenVLAConfig.from_dict(published).to_dict() == published


def test_dataset_statistics_replace_those_of_the_config(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "tuned")
    statistics = {"mine": {"action": {"q01": [0.0] * 7, "q99": [2.0] * 7}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    assert load_processor(folder).unnorm_keys == ["mine"]
    OpenVLA.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert load_processor(tmp_path / "saved").unnorm_keys == ["mine"]


def test_loading_is_strict_and_lists_the_tensors(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["projector.fc1.bias"]
    tensors["projector.fc9.bias"] = th.zeros(3)
    tensors["projector.fc3.bias"] = th.zeros(5)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        OpenVLA.from_pretrained(folder)
    assert "1 missing: projector.fc1.bias" in str(error.value)
    assert "1 unexpected: projector.fc9.bias" in str(error.value)
    assert "1 of another shape: projector.fc3.bias (5,) instead of (128,)" in str(error.value)


def test_a_gpu_too_small_for_the_weights_is_told_before_loading(monkeypatch):
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (int(1.5e9), int(24e9)))
    shapes, gpu = {"weight": (1000, 500_000), "bias": (1000,)}, th.device("cuda")
    with pytest.raises(CheckpointError, match=r"take 2\.0 GB in float32, but 1\.5 of the GPU's 24\.0 GB"):
        _check_memory(shapes, th.float32, gpu)
    _check_memory(shapes, th.bfloat16, gpu)
    _check_memory(shapes, th.float32, th.device("cpu"))


def test_mlp_width_that_the_config_leaves_out_is_read_from_the_weights(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "terse")
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_tower_sizes"][1].pop("mlp_dim") == 320
    (folder / "config.json").write_text(json.dumps(config))
    assert OpenVLA.from_pretrained(folder).config.towers[1].mlp_dim == 320


def test_tokenizer_model_alone_asks_for_sentencepiece(tmp_path, monkeypatch):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "pieces")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        load_processor(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected tokenizer\.json or tokenizer\.model"):
        load_processor(folder)


def test_folders_without_usable_weights_say_what_they_lack(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: expected model.safetensors, or shards with"):
        OpenVLA.from_pretrained(folder)
    assert load_processor(folder).image_size == 112, "the processor needs no weights"
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\), which are never loaded"):
        OpenVLA.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        OpenVLA.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="model_type is 'gpt2', but 'openvla' is needed"):
        OpenVLA.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_processor(folder)


def test_index_with_absent_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", max_shard_size=10**6)
    shard = min((tmp_path / "saved").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks the shards {shard.name} of its index"):
        OpenVLA.from_pretrained(tmp_path / "saved")


def test_unknown_names_are_told_in_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint folder 'tinny'"):
        OpenVLA.from_pretrained("tinny")
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        load_processor(tmp_path / "absent")

    import huggingface_hub

    def offline(repo_id: str, **kwargs: object) -> str:
        assert not any("bin" in pattern or "pt" in pattern for pattern in kwargs["allow_patterns"])
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"'openvla/none' is neither a folder here nor .* \(ConnectionError\)"):
        OpenVLA.from_pretrained("openvla/none")


# --- Bad input ----------------------------------------------------------------------------------------------------


def test_wrong_tensors_are_named(model, batch):
    ids, mask, pixels = prompts(batch)
    with pytest.raises(ValueError, match=r"action_ids must have shape \(3, 7\), got \(3, 6\)"):
        model.action_logits(ids, mask, pixels, batch["action_ids"][:, :6])
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(batch, 6, 112, 112\)"):
        model.sample_actions(ids, mask, pixels[:, :3])
    with pytest.raises(ValueError, match="Got 3 prompts but pixel_values of 2 images"):
        model.sample_actions(ids, mask, pixels[:2])
    with pytest.raises(ValueError, match="padded on the right"):
        model.sample_actions(ids.flip(1), mask.flip(1), pixels)
    with pytest.raises(ValueError, match=r"must both have shape \(batch, length\)"):
        model.sample_actions(ids, mask[:, 1:], pixels)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        model.sample_actions(ids, mask, pixels, temperature=0)


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
