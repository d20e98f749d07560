"""What every backbone must do, whichever it is: the same checks on the stand-in and on real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from fakes import IMAGE_SIZE, FakeBackbone, FakeConfig
from openvla_models import make_parallel, perturbed_tiny

from vla_agent.action_tokens import normalize, to_bins
from vla_agent.backbone import Abilities, VLABackbone, is_backbone, model_inputs
from vla_agent.bins import GREEDY, PLAIN, Sampling

INSTRUCTIONS = ["go left", "go right please", "stay"]
MEMBERS = [name for name in vars(VLABackbone) | VLABackbone.__annotations__ if not name.startswith("_")]


class Case(NamedTuple):
    model: Any
    inputs: dict[str, th.Tensor]


@pytest.fixture(scope="module", params=["fake", "fake with state", "chain", "parallel"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model, and observations of three environments as its arguments."""
    model = make(request.param, tmp_path_factory.mktemp("parallel") / "model")
    rng = np.random.default_rng(0)
    size, config = model.processor.image_size, model.config
    images = [th.from_numpy(rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)) for _ in range(config.num_images)]
    state = rng.uniform(0, 2, (3, 8)) if config.use_state else None
    ids, mask = prompts(model)
    return Case(model, model_inputs(model, ids, mask, images, state, None))


def prompts(model: Any) -> tuple[th.Tensor, th.Tensor]:
    """The codec's prompts, padded on the right to the longest."""
    rows = [model.processor.codec().encode_prompt(instruction) for instruction in INSTRUCTIONS]
    return tuple(  # type: ignore[return-value]
        th.nn.utils.rnn.pad_sequence([th.from_numpy(row[part]) for row in rows], batch_first=True) for part in (0, 1)
    )


def make(kind: str, folder: Path) -> Any:
    if kind == "chain":
        return perturbed_tiny()
    if kind == "parallel":
        return make_parallel(folder)[0]
    config = FakeConfig(2, True, 2) if kind == "fake with state" else FakeConfig()
    model = FakeBackbone(7 * config.action_chunk_size, config=config)
    assert model.processor.image_size == IMAGE_SIZE
    return model


def test_it_has_every_member_that_its_abilities_ask_for(case: Case) -> None:
    assert is_backbone(case.model)
    optional = {
        "autocast_dtype": case.model.abilities.autocast,
        "set_autocast": case.model.abilities.autocast,
        "set_cuda_graphs": case.model.abilities.cuda_graphs,
        "set_gradient_checkpointing": case.model.abilities.gradient_checkpointing,
        "regress_actions": case.model.abilities.regresses_actions,
        "sample_candidates": case.model.abilities.samples_candidates,
        "score_candidates": case.model.abilities.samples_candidates,
    }
    assert set(optional) < set(MEMBERS)
    missing = [name for name in MEMBERS if optional.get(name, True) and not hasattr(case.model, name)]
    assert missing == []


def test_only_a_module_that_states_its_abilities_is_a_backbone() -> None:
    assert not is_backbone("tiny")
    assert not is_backbone(th.nn.Linear(1, 1))
    assert not is_backbone(type("Stated", (), {"abilities": Abilities()})())


@th.no_grad()
def test_shapes_and_types_are_the_protocols(case: Case) -> None:
    model, n_tokens = case.model, case.model.n_action_tokens
    sample = model.sample_actions(**case.inputs)
    assert sample.bins.shape == (3, n_tokens)
    assert sample.bins.dtype == th.int64
    assert 0 <= sample.bins.min() <= sample.bins.max() <= 255
    for scores in (sample, model.score_actions(**case.inputs, bins=sample.bins)):
        assert scores.logits.shape == (3, n_tokens, 256)
        assert scores.logits.dtype == th.float32
        assert scores.hidden.shape == (3, model.hidden_size)
    assert model.device == sample.bins.device


@th.no_grad()
def test_what_is_scored_is_what_was_drawn_from(case: Case) -> None:
    sample = case.model.sample_actions(**case.inputs, generator=th.Generator().manual_seed(0))
    scores = case.model.score_actions(**case.inputs, bins=sample.bins)
    th.testing.assert_close(scores.logits, sample.logits, rtol=0, atol=1e-4)
    th.testing.assert_close(scores.hidden, sample.hidden, rtol=0, atol=1e-4)


@th.no_grad()
def test_observations_are_encoded_as_they_are_scored(case: Case) -> None:
    bins = th.full((3, case.model.n_action_tokens), 7)
    hidden = case.model.encode_observations(**case.inputs)
    assert hidden.std(0).max() > 1e-3, "rows that are all alike would prove nothing"
    th.testing.assert_close(hidden, case.model.score_actions(**case.inputs, bins=bins).hidden, rtol=0, atol=1e-5)


@th.no_grad()
def test_greedy_bins_are_the_likeliest_of_their_own_scores(case: Case) -> None:
    sample = case.model.sample_actions(**case.inputs, sampling=GREEDY)
    assert th.equal(sample.bins, sample.logits.argmax(-1))


@th.no_grad()
def test_a_seed_decides_and_the_global_one_if_there_is_no_generator(case: Case) -> None:
    def draw(seed: int) -> th.Tensor:
        return case.model.sample_actions(**case.inputs, generator=th.Generator().manual_seed(seed)).bins

    assert th.equal(draw(3), draw(3))
    assert not th.equal(draw(3), draw(4))
    th.manual_seed(3)
    assert th.equal(case.model.sample_actions(**case.inputs, sampling=PLAIN).bins, draw(3))


@th.no_grad()
def test_candidates_are_scored_as_if_each_were_alone(case: Case) -> None:
    n_tokens = case.model.n_action_tokens
    sample = case.model.sample_candidates(**case.inputs, n_samples=4, generator=th.Generator().manual_seed(0))
    assert sample.bins.shape == (3, 4, n_tokens)
    assert sample.bins.dtype == th.int64
    assert sample.logits.shape == (3, 4, n_tokens, 256)
    assert sample.logits.dtype == th.float32
    assert sample.hidden.shape == (3, case.model.hidden_size)
    assert not th.equal(sample.bins[:, 0], sample.bins[:, 1]), "candidates that are all alike would prove nothing"
    again = case.model.score_candidates(**case.inputs, bins=sample.bins)
    for i in range(4):
        alone = case.model.score_actions(**case.inputs, bins=sample.bins[:, i])
        th.testing.assert_close(sample.logits[:, i], alone.logits, rtol=0, atol=1e-4)
        th.testing.assert_close(again[:, i], alone.logits, rtol=0, atol=1e-4)
        th.testing.assert_close(sample.hidden, alone.hidden, rtol=0, atol=1e-4)


@th.no_grad()
def test_candidates_differ_from_chain_to_chain_only_if_tokens_depend_on_each_other(case: Case) -> None:
    logits = case.model.sample_candidates(**case.inputs, n_samples=3).logits
    assert th.equal(logits[:, 0], logits[:, 1]) == case.model.abilities.independent_tokens


@th.no_grad()
@pytest.mark.parametrize("sampling", [PLAIN, Sampling(temperature=2.0, top_k=9), GREEDY])
def test_a_single_candidate_is_the_sample_to_the_bit(case: Case, sampling: Sampling) -> None:
    alone = case.model.sample_actions(**case.inputs, sampling=sampling, generator=th.Generator().manual_seed(5))
    among = case.model.sample_candidates(
        **case.inputs, n_samples=1, sampling=sampling, generator=th.Generator().manual_seed(5)
    )
    assert th.equal(among.bins[:, 0], alone.bins)
    assert th.equal(among.logits[:, 0], alone.logits)
    assert th.equal(among.hidden, alone.hidden)


@th.no_grad()
def test_the_greedy_chain_can_be_the_first_candidate_and_leaves_the_others_as_they_are(case: Case) -> None:
    def draw(greedy_first: bool) -> th.Tensor:
        generator = th.Generator().manual_seed(2)
        return case.model.sample_candidates(
            **case.inputs, n_samples=3, greedy_first=greedy_first, generator=generator
        ).bins

    greedy = case.model.sample_actions(**case.inputs, sampling=GREEDY).bins
    assert th.equal(draw(True)[:, 0], greedy)
    assert not th.equal(draw(False)[:, 0], greedy)
    assert th.equal(draw(True)[:, 1:], draw(False)[:, 1:])


def test_no_candidates_are_an_error(case: Case) -> None:
    with pytest.raises(ValueError, match="n_samples=0 is out of range; expected a whole number"):
        case.model.sample_candidates(**case.inputs, n_samples=0)


@th.no_grad()
def test_truncation_draws_from_the_likeliest_alone(case: Case) -> None:
    sample = case.model.sample_actions(**case.inputs, sampling=Sampling(temperature=3.0, top_k=2))
    likeliest = sample.logits.topk(2).indices
    assert (likeliest == sample.bins[..., None]).any(-1).all()
    assert not th.equal(sample.bins, sample.logits.argmax(-1)), "the second is drawn, too"


def test_scores_that_are_no_numbers_are_an_error(case: Case) -> None:
    broken = case.inputs | {"pixel_values": case.inputs["pixel_values"] * float("nan")}
    for sampling in (PLAIN, GREEDY):
        with pytest.raises(FloatingPointError, match="not finite"):
            case.model.sample_actions(**broken, sampling=sampling)


def test_gradients_reach_all_but_the_unused_parameters(case: Case) -> None:
    case.model.zero_grad(set_to_none=True)
    scores = case.model.score_actions(**case.inputs, bins=th.full((3, case.model.n_action_tokens), 7))
    (scores.logits.square().mean() + scores.hidden.sum()).backward()
    without = [name for name, parameter in case.model.named_parameters() if parameter.grad is None]
    case.model.zero_grad(set_to_none=True)
    assert sorted(without) == sorted(case.model.unused_parameter_names())


def test_the_codec_decodes_each_dimension_for_itself_whichever_action_it_is_of(case: Case) -> None:
    processor = case.model.processor
    codec = processor.codec()
    n_tokens = case.model.n_action_tokens
    assert codec.chunk_size == processor.config.action_chunk_size == case.model.config.action_chunk_size
    assert codec.action_space.nvec.tolist() == [256] * n_tokens
    bins = np.random.default_rng(0).integers(0, 256, (5, n_tokens))
    actions = codec.decode(bins)
    table = codec.decode(np.repeat(np.arange(256)[:, None], n_tokens, axis=1))[:, 0].T  # (7, 256)
    assert (np.diff(table[0]) >= 0).all(), "bins count upward with the action"
    assert actions.shape == (5, n_tokens // 7, 7)
    assert actions.dtype == np.float64
    for row, step, dim in np.ndindex(actions.shape):
        assert actions[row, step, dim] == table[dim, bins[row, 7 * step + dim]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bins: bins.astype(float), r"The actions are float64 \(2, N\); expected integers \(2, N\)\."),
        (lambda bins: bins[:, 1:], r"expected integers \(2, N\)"),
        (lambda bins: bins[0], r"expected integers"),
        (lambda bins: bins[..., None], r"expected integers"),
        (lambda bins: bins + 256, r"The actions lie in 256\.\.256; expected bins 0\.\.255\."),
        (lambda bins: bins - 1, r"expected bins 0\.\.255"),
    ],
)
def test_the_codec_refuses_what_is_not_of_its_space(case: Case, change: Any, message: str) -> None:
    bins = np.zeros((2, case.model.n_action_tokens), dtype=int)
    with pytest.raises(ValueError, match=message.replace("N", str(case.model.n_action_tokens))):
        case.model.processor.codec().decode(change(bins))


def test_prompts_are_of_the_instruction(case: Case) -> None:
    codec = case.model.processor.codec()
    found = set()
    for instruction in INSTRUCTIONS:
        ids, mask = codec.encode_prompt(instruction, np.zeros(8))
        assert ids.dtype == mask.dtype == np.int64
        assert ids.shape == mask.shape == (len(ids),)
        assert mask.all(), "padding is for whoever makes a batch"
        found.add(tuple(ids.tolist()))
    assert len(found) == len(INSTRUCTIONS)


@th.no_grad()
def test_padding_does_not_matter(case: Case) -> None:
    assert not case.inputs["attention_mask"].all(), "prompts of one length would prove little"
    bins = th.full((3, case.model.n_action_tokens), 7)
    longer = {name: th.nn.functional.pad(case.inputs[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    expected = case.model.score_actions(**case.inputs, bins=bins).logits
    got = case.model.score_actions(**{**case.inputs, **longer}, bins=bins).logits
    th.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_an_unknown_data_set_is_named(case: Case) -> None:
    processor = case.model.processor
    assert processor.unnorm_keys
    for ask in (processor.codec, processor.action_stats):
        with pytest.raises(ValueError, match="no statistics for unnorm_key 'mars'"):
            ask("mars")


def test_bins_of_actions_come_back(case: Case) -> None:
    stats = case.model.processor.action_stats()
    middle = (np.asarray(stats["q01"]) + np.asarray(stats["q99"])) / 2
    masked = np.asarray(stats["mask"])
    np.testing.assert_allclose(normalize(middle, stats)[masked], 0, atol=1e-6)
    assert set(to_bins(middle, stats)[masked]) <= {127, 128}
