"""Agreement with a masked copy, against a plain computation of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeConfig, FakeVectorEnv, fake_env
from openvla_models import make_parallel

from vla_agent import VLAPolicy, VLAVecEnv
from vla_agent.openvla import load_processor
from vla_agent.test_time import MaskedAgreement, Question, ScorerError


def question(policy: VLAPolicy, env: VLAVecEnv, n: int = 4) -> Question:
    env.seed(0)
    obs, _ = policy.obs_to_tensor(env.reset())
    inputs = policy.backbone_inputs(obs)
    drawn = policy.backbone.sample_candidates(**inputs, n_samples=n, generator=th.Generator().manual_seed(0))
    return Question(inputs, drawn)


def fake(**kwargs: Any) -> tuple[VLAPolicy, VLAVecEnv]:
    env = fake_env(3)
    backbone = FakeBackbone(config=FakeConfig(**kwargs))
    return VLAPolicy(env.observation_space, env.action_space, lambda _: 0.0, backbone), env


def tiny() -> tuple[VLAPolicy, VLAVecEnv]:
    env = VLAVecEnv(FakeVectorEnv(3, size=112), load_processor("tiny"))
    return VLAPolicy(env.observation_space, env.action_space, lambda _: 0.0, "tiny"), env


@th.no_grad()
@pytest.mark.parametrize("make", [fake, tiny])
def test_the_confidence_of_a_chain_is_the_divergence_from_the_masked_distributions(make: Any) -> None:
    policy, env = make()
    asked = question(policy, env)
    scores = MaskedAgreement(policy).score(asked)
    assert scores.shape == (3, 4)
    assert scores.std(1).min() > 1e-6, "scores that are all alike would choose nothing"
    ids = np.array(policy.backbone.processor.codec().encode_prompt("")[0])
    for row in range(3):
        prompt = th.from_numpy(ids)[None]
        pixels = asked.inputs["pixel_values"][row : row + 1]
        for i in range(4):
            bins = asked.candidates.bins[row : row + 1, i]
            q = policy.backbone.score_actions(prompt, th.ones_like(prompt), pixels, bins).logits[0].softmax(-1)
            p = asked.candidates.logits[row, i].softmax(-1)
            expected = (q * (q.log() - p.log())).sum()
            assert scores[row, i].item() == pytest.approx(expected.item(), abs=1e-4)


@th.no_grad()
def test_the_state_is_masked_where_the_model_reads_it(tmp_path: Any) -> None:
    model, inputs = make_parallel(tmp_path)
    env = VLAVecEnv(FakeVectorEnv(3, size=112, wrist=True, chunk_size=8), model.processor)
    policy = VLAPolicy(env.observation_space, env.action_space, lambda _: 0.0, model)
    assert MaskedAgreement(policy).masked == ("instruction", "state")
    drawn = model.sample_candidates(**inputs, n_samples=3, generator=th.Generator().manual_seed(0))
    # Independent tokens have one distribution for all chains, so only what was drawn tells them apart.
    found = MaskedAgreement(policy, ("state",)).score(Question(inputs, drawn))
    reference = model.score_actions(**(inputs | {"state": th.zeros(3, 8)}), bins=drawn.bins[:, 0]).logits
    log_p, log_q = drawn.logits[:, 0].log_softmax(-1), reference.log_softmax(-1)
    for i in range(3):
        index = drawn.bins[:, i, :, None]
        expected = (log_p.gather(-1, index) - log_q.gather(-1, index)).sum((1, 2))
        th.testing.assert_close(found[:, i], expected, rtol=0, atol=1e-3)
    assert found.std(1).min() > 1e-4


def test_what_cannot_be_masked_is_named() -> None:
    policy, _ = fake()
    assert MaskedAgreement(policy).masked == ("instruction",)
    with pytest.raises(ScorerError, match=r"leaves out nothing that the model reads; it reads instruction\."):
        MaskedAgreement(policy, ("state",))
    with pytest.raises(ScorerError, match=r"masked=\(\) leaves out nothing"):
        MaskedAgreement(policy, ())
    with pytest.raises(ValueError, match=r"Unknown masked 'words'\. Choices: 'instruction', 'state'"):
        MaskedAgreement(policy, ("words",))
    with pytest.raises(ValueError, match=r"masked='state'; expected a sequence, such as masked=\('state',\)"):
        MaskedAgreement(policy, "state")
