"""What the README shows works as it stands."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

from fakes import FakeBackbone, fake_env
from paths import ROOT
from stable_baselines3.common.logger import configure

from libero_gym.tasks import SUITES
from vla_agent import VLAPPO, SuccessCallback

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_quickstart_runs_as_printed(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    script = tmp_path / "quickstart.py"
    script.write_text(code)
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "pick up the black bowl on the cookie box and place it on the plate (128, 128, 3) (8,)" in result.stdout
    assert (tmp_path / "runs" / "quickstart" / "policy.safetensors").is_file()


def test_environment_table_is_complete() -> None:
    for suite in SUITES.values():
        base = suite.env_id.split("-")[1]
        assert f"`LIBERO-{base}-v0`" in README
    for variant in ("Language", "Object", "Swap", "Task"):
        assert variant in README


def test_glossary_names_every_metric(tmp_path: Path) -> None:
    """Every column that a training run writes is explained, by its last word at least."""
    env = fake_env(max_episode_steps=4)
    model = VLAPPO("VLAPolicy", env, n_steps=8, batch_size=4, policy_kwargs={"model": FakeBackbone()}, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(48, SuccessCallback())
    with (tmp_path / "progress.csv").open() as stream:
        columns = next(csv.reader(stream))
    assert len(columns) > 30
    sb3_own = {"iterations", "time_elapsed", "total_timesteps"}
    names = {re.sub(r"success_task_\d+", "success_task_<id>", column.split("/")[1]) for column in columns} - sb3_own
    names -= {f"entropy_{name}" for name in ("y", "z", "roll", "pitch", "yaw")}  # "`entropy_x` … `entropy_gripper`"
    assert {name for name in names if name not in README} == set()
