"""The commands on worlds: an evaluation that is called batched, its comparison with another one, and a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from libero_gym.equivalence.versions import fidelity


def test_a_policy_is_judged_on_worlds_and_compared_on_purpose(
    warp: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from vla_agent import EvaluationReport
    from vla_agent.commands import cli

    shared = ["--model", "tiny-libero", "--protocol", "training", "--task-ids", "0,5", "--init-states", "0"]
    shared += ["--trained-states", "--max-episode-steps", "8", "--renderer", "fast", "--device", "cpu", "--n-envs", "2"]
    folders = [str(tmp_path / name) for name in ("processes", "warp")]
    for folder, backend in zip(folders, ([], ["--backend", "warp"]), strict=True):
        cli.main(["evaluate", *shared, *backend, "--out", folder])
    assert "(cached)" not in capsys.readouterr().out
    hosts, worlds = map(EvaluationReport.load, folders)
    assert [episode[:2] for episode in worlds.episodes] == [(0, 0), (5, 0)]
    assert hosts.settings["mujoco"] == fidelity()
    assert worlds.settings["mujoco"].startswith("batched (MuJoCo Warp ")
    assert {"mujoco-warp", "warp-lang"} <= worlds.manifest["versions"].keys()
    assert "simulation is batched (MuJoCo Warp" in (tmp_path / "warp" / "report.md").read_text()

    compare = ["evaluate", "--compare", *folders, "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(compare)
    assert "one batched (MuJoCo Warp" in capsys.readouterr().err
    cli.main([*compare, "--across-simulations"])
    told = capsys.readouterr().out
    assert "Comparable: yes." in told
    assert f"Simulations: {fidelity()} against batched (MuJoCo Warp" in told
    assert "On the 2 episodes that both ran" in told
    assert "The simulations differ: " in (tmp_path / "comparison.html").read_text()

    with pytest.raises(SystemExit):  # the same folder is not gone on with elsewhere
        cli.main(["evaluate", *shared, "--out", folders[1]])
    assert "is of another evaluation: mujoco is 'batched (MuJoCo Warp" in capsys.readouterr().err


def test_warp_tells_of_kernels_that_it_compiles_alone(warp: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from vla_agent.commands.backends import CompilingLogger

    logger = CompilingLogger()
    assert isinstance(logger, warp._src.logger.Logger)
    logger.info("Module a load on device 'cpu' took 1 ms  (cached)")
    logger.info("Module b load on device 'cpu' took 9 ms  (compiled)")
    assert capsys.readouterr().err == "Module b load on device 'cpu' took 9 ms  (compiled)\n"
    with pytest.warns(DeprecationWarning, match="old"):
        logger.warning("old", DeprecationWarning)


def test_a_policy_trains_on_worlds_and_is_evaluated_there(warp: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from vla_agent import VLAPPO
    from vla_agent.commands import train

    arguments = ["--backend", "warp", "--keep-on-device", "--eval-backend", "warp", "--device", "cpu"]
    arguments += ["--task-ids", "0", "--n-placements", "0", "--n-envs", "2", "--n-steps", "2", "--batch-size", "4"]
    arguments += ["--total-timesteps", "4", "--critic-warmup-iterations", "0", "--max-episode-steps", "16"]
    arguments += ["--reward", "process", "--eval-states", "0", "--eval-freq", "4", "--out", str(tmp_path / "run")]
    options = train.parse_arguments(arguments)
    train.check(options)
    env = train.make_environments(options)
    model = train.make_learner(options, env, None)
    evaluation = train.make_evaluation(options)
    model.learn(4, callback=evaluation)
    assert isinstance(model.rollout_buffer.observations["image"], torch.Tensor)
    assert model.env.settings["mujoco"].startswith("batched")
    (report, *_) = evaluation.reports.values()
    assert report.settings["mujoco"].startswith("batched")
    model.save(tmp_path / "saved")
    assert VLAPPO.load(tmp_path / "saved", env=env).num_timesteps == 4
    env.close()
