"""`tiny-libero`, which ships: small, complete, and able to do what it learned."""

from __future__ import annotations

from vla_agent.evaluation import evaluate_policy
from vla_agent.evaluation.manifest import read_training_states
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.folder import SHIPPED_FOLDER, shipped_names


def test_it_is_small_and_says_what_it_was_trained_on() -> None:
    folder = SHIPPED_FOLDER / "tiny-libero"
    assert "tiny-libero" in shipped_names()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6
    states = read_training_states(folder)
    assert states is not None
    assert set(states["libero_spatial"]).isdisjoint(range(20))


def test_it_speaks_chunks_of_eight_actions() -> None:
    model = OpenVLA.from_pretrained("tiny-libero")
    assert (model.config.action_chunk_size, model.config.decoding, model.config.use_state) == (8, "parallel", True)
    assert model.processor.unnorm_keys == ["libero"]


def test_it_puts_a_bowl_on_the_plate_from_states_that_it_never_saw() -> None:
    # Task 4 succeeded from 19 of 20 states when it was measured; another machine's last bits may lose one.
    report = evaluate_policy(
        "tiny-libero", "LIBERO-Spatial-v0", task_ids=[4], init_state_ids=[0, 1], protocol="training", n_envs=2
    )
    assert report.success_rate >= 0.5
