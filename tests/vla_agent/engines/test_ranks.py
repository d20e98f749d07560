"""What a collective that fails says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from vla_agent.engines import ranks
from vla_agent.engines.errors import RanksError
from vla_agent.engines.ranks import ProcessRanks

NCCL = """NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN)
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"""
GLOO = """[pair.cc:534] Connection closed by peer [127.0.0.1]:48610
Exception raised from somewhere"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (NCCL, r"\(Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000\)"),
        (GLOO, r"\(\[pair\.cc:534\] Connection closed by peer \[127\.0\.0\.1\]:48610\)"),
        ("", r"\(no reason is given\)"),
    ],
    ids=["nccl", "gloo", "nothing"],
)
def test_the_reason_of_a_sum_that_failed_is_told(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(ranks, "make_group", lambda *_: SimpleNamespace(allreduce=fail))
    own = ProcessRanks(0, 2, None, th.device("cpu"), "127.0.0.1", 5)  # type: ignore[arg-type]
    with pytest.raises(RanksError, match=rf"took longer than 5 s {told}\.$"):
        own.sum([th.zeros(2)])
