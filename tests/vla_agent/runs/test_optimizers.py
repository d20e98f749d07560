"""Any optimizer's moments are saved and come back, each to where it belongs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch as th
from resuming import StopAt, assert_equal_runs, learner, load
from safetensors.torch import load_file, save_file
from torch import nn

from vla_agent import RunError
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.optimizer_state import pack_optimizer, restore_optimizer
from vla_agent.runs.run_files import OPTIMIZER


class SumsOfRows(th.optim.SGD):
    """Somebody's own: its moments have shapes of their own, and only matrices have them."""

    @th.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim > 1:
                    state = self.state[parameter]
                    state["rows"] = state.get("rows", 0) + parameter.grad.flatten(1).sum(1)
                    parameter.sub_(group["lr"] * state["rows"].view(-1, *(1,) * (parameter.ndim - 1)))
        super().step(closure)


OPTIMIZERS: list[tuple[type[th.optim.Optimizer], dict[str, Any]]] = [
    (th.optim.Adafactor, {}),
    (th.optim.NAdam, {}),
    (th.optim.ASGD, {}),
    (th.optim.Adam, {"fused": True}),
    (SumsOfRows, {}),
]


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS, ids=[cls.__name__ for cls, _ in OPTIMIZERS])
def test_a_run_goes_on_with_its_optimizers_moments(
    tmp_path: Path, optimizer: type[th.optim.Optimizer], arguments: dict[str, Any]
) -> None:
    policy_kwargs = {"optimizer_class": optimizer, "optimizer_kwargs": arguments}
    whole = learner(policy_kwargs=policy_kwargs)
    whole.learn(96)
    cut = learner(policy_kwargs=policy_kwargs)
    cut.learn(96, StopAt(20))
    cut.save(tmp_path / "a")
    resumed = load(tmp_path / "a", policy_kwargs={"optimizer_class": optimizer})
    resumed.learn(96 - resumed.num_timesteps, reset_num_timesteps=False)
    assert whole.policy.optimizer.state
    assert_equal_runs(whole, resumed)


def test_factored_moments_come_back_without_checksums_and_others_do_not(tmp_path: Path) -> None:
    learner(policy_kwargs={"optimizer_class": th.optim.Adafactor}).learn(32).save(tmp_path / "a")
    (tmp_path / "a" / "checksums.json").unlink()
    load(tmp_path / "a")
    whole = load_file(tmp_path / "a" / OPTIMIZER)
    name = min(name for name in whole if name.endswith("row_var"))
    for changed, wrong in (
        (whole | {name: whole[name].expand(-1, 2).contiguous()}, "has shape"),
        ({key: value for key, value in whole.items() if key != name}, "lacks row_var"),
    ):
        save_file(changed, tmp_path / "a" / OPTIMIZER)
        with pytest.raises(RunError, match=rf"The optimizer in '.*' is damaged: .*{wrong}"):
            load(tmp_path / "a")


class SmallPolicy(nn.Module):
    """What `restore_optimizer` asks of a policy."""

    average_decay = 0.0

    def __init__(self, optimizer: type[th.optim.Optimizer], device: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, device=device)
        self.optimizer = optimizer(self.parameters(), lr=0.1)  # type: ignore[call-arg]


class InMemory:
    """The optimizer's files of a run."""

    path, names = Path("run"), frozenset[str]()

    def __init__(self, tensors: dict[str, th.Tensor], groups: dict[str, Any]) -> None:
        self.content, self.groups = tensors, groups

    def stream(self, name: str) -> IO[bytes]:
        return io.BytesIO(json.dumps(self.groups).encode())

    def tensors(self, name: str) -> dict[str, th.Tensor]:
        return self.content


@pytest.mark.parametrize("counts_on_device", ["fused", "capturable", None])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.NAdam])
def test_steps_are_counted_where_the_optimizer_wants_them(
    optimizer: type[th.optim.Optimizer], counts_on_device: str | None
) -> None:
    """On the device if it is fused or capturable, as by torch's own `load_state_dict`, which the test compares with."""
    before = SmallPolicy(optimizer, "cpu")
    before.layer(th.ones(3)).sum().backward()
    before.optimizer.step()
    if counts_on_device is not None:
        before.optimizer.param_groups[0][counts_on_device] = True
    after, reference = SmallPolicy(optimizer, "meta"), SmallPolicy(optimizer, "meta")
    reference.optimizer.load_state_dict(before.optimizer.state_dict())
    restore_optimizer(cast(VLAPolicy, after), InMemory(*pack_optimizer(cast(VLAPolicy, before))))
    for mine, theirs in zip(after.parameters(), reference.parameters(), strict=True):
        placed = {key: value.device.type for key, value in after.optimizer.state[mine].items()}
        assert placed == {key: value.device.type for key, value in reference.optimizer.state[theirs].items()}
        assert placed["step"] == ("cpu" if counts_on_device is None else "meta")
        assert placed["exp_avg"] == "meta"
