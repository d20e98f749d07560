"""Learners in several processes that share each minibatch, over torch's collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch as th
import torch.distributed as dist

from vla_agent.engines.errors import RanksError


class Rendezvous:
    """Where ranks meet: a small server in the process of rank 0.

    Args:
        host: Address of this machine that the other ranks reach.
        deadline_s: Seconds within which a collective has to end.
    """

    def __init__(self, host: str, deadline_s: float) -> None:
        self.host, self.deadline_s = host, deadline_s
        self.store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=seconds(deadline_s))

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self.store.port)


class ProcessRanks:
    """One of several ranks, each in a process of its own.

    Gradients are summed once for each minibatch, after its last part, as torch's `DistributedDataParallel` does under
    gradient accumulation; the buffers of a policy are never trained, so nothing else has to travel. A group of its own
    needs no default group, so a program may use torch.distributed for something else, and another group can follow one
    that has failed.

    Args:
        rank: Number of this one, from 0.
        size: How many there are.
        store: Where they meet.
        device: Device of the tensors that are summed.
        host: Address of this machine that the others reach.
        deadline_s: Seconds within which a collective has to end.
    """

    def __init__(
        self, rank: int, size: int, store: dist.Store, device: th.device, host: str, deadline_s: float
    ) -> None:
        self.rank, self.size, self.deadline_s = rank, size, deadline_s
        try:
            self._group = make_group(rank, size, store, device, host, deadline_s)
        except RuntimeError as error:
            raise RanksError(
                f"Learner {rank} of {size} did not meet the others within {deadline_s:g} s ({reason(error)})."
            ) from error

    def learn(self, learner: Any, train: Callable[[], None]) -> list[float]:
        """Runs a learner's update, as all ranks do; a sum of each trained tensor after it, equal on all ranks."""
        train()
        return weight_sums(learner)

    def close(self) -> None:
        """Ends what the process group needs."""

    def sum(self, tensors: Sequence[th.Tensor]) -> None:
        """Replaces each tensor by its sum over all ranks, equal to the bit on each of them.

        Raises:
            RanksError: If a rank is gone, or does not come within the deadline.
        """
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            own = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = th.cat([tensor.reshape(-1) for tensor in own])
            try:
                self._group.allreduce([flat]).wait()
            except RuntimeError as error:
                raise RanksError(
                    f"Learner {self.rank} of {self.size} could not sum its gradients with the others: one is gone, or "
                    f"took longer than {self.deadline_s:g} s ({reason(error)})."
                ) from error
            with th.no_grad():
                for tensor, summed in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                    tensor.copy_(summed.view_as(tensor))


def reason(error: RuntimeError) -> str:
    """What torch says of a collective that failed, in a line: NCCL's own reason comes last, and others' first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
    return f"{lines[-1 if 'Last error:' in lines else 0]:.200}"


def weight_sums(learner: Any) -> list[float]:
    """The sum of each trained tensor: learners that hold the same weights have the same."""
    trained = [p for group in learner.policy.optimizer.param_groups for p in group["params"]]
    return th.stack([p.detach().double().sum() for p in trained]).tolist() if trained else []


def make_group(rank: int, size: int, store: dist.Store, device: th.device, host: str, deadline_s: float) -> Any:
    """The collectives of all ranks; arguments as for `ProcessRanks`."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = seconds(deadline_s)
        return dist.ProcessGroupNCCL(store, rank, size, options)
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = seconds(deadline_s)
    return gloo(store, rank, size, options)


def seconds(number: float) -> timedelta:
    """A deadline as torch takes it."""
    return timedelta(seconds=number)
