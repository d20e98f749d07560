"""What passes through a policy take is measured on one sample or two, and counted for a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from policy_memory import as_on_a_gpu, make_inputs
from policy_throughput import build

from vla_agent import VLAPPO, make_vec_env
from vla_agent.bins import bin_log_probs
from vla_agent.engines.activations import Growth, growth, kept_bytes, measure
from vla_agent.engines.budget import measured
from vla_agent.openvla.decoders import ChainDecoder
from vla_agent.policy.lora import LoraSettings, add_lora


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    """Two environments whose prompts differ in length."""
    made = make_vec_env("LIBERO-Spatial-v0", 2, model="tiny", task_id=[0, 1], renderer="fast", seed=0)
    yield made
    made.close()


def learner(env: Any, **policy_kwargs: Any) -> Any:
    """A learner whose training begins."""
    kwargs = {"model": "tiny", **policy_kwargs}
    made = VLAPPO("VLAPolicy", env, n_steps=8, batch_size=16, policy_kwargs=kwargs, device="cpu", seed=0)
    made._setup_learn(0)
    return made


def by_address(model: Any, n: int) -> int:
    """Bytes that scoring n samples keeps besides weights, by the addresses of memory."""
    obs = {key: th.as_tensor(np.concatenate([values] * (n // 2))) for key, values in model._last_obs.items()}
    policy = model.policy
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*policy.parameters(), *policy.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: th.Tensor) -> th.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with th.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = policy.score(obs, th.zeros(n, 7))
    assert scores.values.requires_grad
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("policy_kwargs", [{}, {"lora": {"r": 4}}, {"gradient_checkpointing": True}])
def test_a_micro_batch_keeps_what_hooks_count_of_it(env: Any, policy_kwargs: dict[str, Any]) -> None:
    model = learner(env, **policy_kwargs)
    activations = measured(model, 8, 2).activations
    for n in (2, 4, 8):
        assert activations.of(n) == pytest.approx(by_address(model, n), rel=0.02)
    assert activations.of(0) == 0


def test_measuring_changes_nothing(env: Any) -> None:
    model = learner(env, lora={"r": 4, "dropout": 0.5})
    before, weights = th.get_rng_state(), [p.detach().clone() for p in model.policy.parameters()]
    measure(model.policy, model._last_obs, 8, 2)
    assert th.equal(before, th.get_rng_state())
    assert all(th.equal(p, own) for p, own in zip(model.policy.parameters(), weights, strict=True))
    assert all(p.grad is None for p in model.policy.parameters())


def test_recomputed_blocks_keep_less_and_acting_takes_keys_and_values(env: Any) -> None:
    model, small = learner(env), learner(env, gradient_checkpointing=True)
    sizes = measured(model, 8, 2)
    assert sizes.activations.each > 2 * measured(small, 8, 2).activations.each
    config = model.policy.backbone.language_model.config
    n_positions = model.policy.backbone.config.n_patches + 1  # without the prompt
    keys_and_values = 2 * 4 * config.num_hidden_layers * config.hidden_size * n_positions
    assert keys_and_values < sizes.acting.each < 20 * keys_and_values
    assert not sizes.keeps_acting  # nothing is recorded on a CPU


def test_no_more_samples_pass_at_once_than_in_training() -> None:
    asked: list[int] = []

    def bytes_of(n: int) -> int:
        asked.append(n)
        return 5 + 10 * n

    assert growth(bytes_of, 4) == Growth(5, 10)
    assert growth(bytes_of, 1) == Growth(0, 15)
    assert asked == [1, 2, 1]


def test_the_published_7b_keeps_what_its_table_says() -> None:
    """benchmarks/results/policy_memory.json: 31.98 GB at the peak for 8 samples, and 24.29 for 4."""
    model = build("7b", th.device("meta"), th.bfloat16)
    add_lora(model, LoraSettings(r=32), model.unused_parameter_names())

    def keep(n: int) -> int:
        layout, pixels = make_inputs(model, n)
        actions = th.zeros(n, model.n_action_tokens, dtype=th.int64, device="meta")

        def score() -> th.Tensor:
            hidden = ChainDecoder().hidden(model, layout, model.embed_prefix(layout, pixels, None), actions)
            return bin_log_probs(model.bin_logits(hidden))

        return kept_bytes(score, [*model.parameters(), *model.buffers()])

    with as_on_a_gpu():
        found = growth(keep, 8)
    assert found.each == pytest.approx((31.98e9 - 24.29e9) / 4, rel=0.03)
