"""A policy whose weights, gradients and moments are spread over learners, by PyTorch's FSDP2."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import torch as th
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vla_agent.algorithms import health
from vla_agent.engines.errors import EngineError, RanksError
from vla_agent.engines.ranks import ProcessRanks, make_group, reason, seconds
from vla_agent.policy.policy import VLAPolicy

# What a backbone is called by, see `VLABackbone`: blocks gather their weights when these reach them.
_PASSES = ("score_actions", "encode_observations", "sample_actions")


class ShardedRanks(ProcessRanks):
    """Ranks of which each holds a share of every weight of the backbone in an update, with its gradient and moments.

    Between updates a rank that plays or saves has the whole policy besides. In an update, a pass gathers the weights of
    one block after the other, and a backward pass leaves each rank the sum of its share's gradients (Zhao et al. 2023,
    arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`). After it, the whole policy gets the new weights, and the
    first rank's host the moments, which it saves.

    Args:
        rank: See `ProcessRanks`, as for the others.
        size: See there.
        store: See there.
        device: See there.
        host: See there.
        deadline_s: See there.
        policy: The whole policy, whose optimizer has its moments on the host.
        keeps: Whether this rank needs the whole policy between updates.

    Raises:
        RanksError: If the ranks do not meet.
        EngineError: If the program has a default process group of its own.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: dist.Store,
        device: th.device,
        host: str,
        deadline_s: float,
        *,
        policy: VLAPolicy,
        keeps: bool,
    ) -> None:
        super().__init__(rank, size, dist.PrefixStore("sums", store), device, host, deadline_s)
        with self._telling():
            mesh = _mesh(rank, size, dist.PrefixStore("shares", store), device, host, deadline_s)
            self.policy = sharded(policy, mesh)
        self._whole = policy if keeps else None
        if rank:
            policy.optimizer.state.clear()  # the first one saves it

    def learn(self, learner: Any, train: Callable[[], None]) -> list[float]:
        """Runs a learner's update with the shares; a sum of each trained tensor after it, equal on all ranks.

        Raises:
            RanksError: If a rank is gone, or does not come within the deadline; the whole policy may be partly new.
        """
        learner.policy = self.policy
        try:
            with self._telling(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # no result is changed in place
                train()
                try:
                    return self._gather()
                except BaseException:
                    learner.moments.reopen_update()
                    raise
        finally:
            if self._whole is not None:
                learner.policy = self._whole

    def sum(self, tensors: Sequence[th.Tensor]) -> None:
        """As `ProcessRanks.sum`; of the gradients of shares, the backward pass has made means."""
        for tensor in filter(health.is_shared, tensors):
            cast(DTensor, tensor).to_local().mul_(self.size)
        super().sum([tensor for tensor in tensors if not health.is_shared(tensor)])

    def close(self) -> None:
        """Ends the process group that FSDP2 takes for the program's."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @th.no_grad()
    def _gather(self) -> list[float]:
        """Gathers weights, and moments on the first rank; sums of the weights."""
        cast(FSDPModule, self.policy._backbone).reshard()  # a pass without gradients leaves its own weights gathered
        targets = {} if self._whole is None else dict(self._whole.named_parameters())
        sums = []
        for name, parameter in self.policy.named_parameters():
            if not parameter.requires_grad:
                continue
            weights = health.whole(parameter)
            sums.append(weights.double().sum())
            if targets:
                targets[name].copy_(weights)
            for key, value in self.policy.optimizer.state.get(parameter, {}).items():
                is_tensor = isinstance(value, th.Tensor)
                gathered = health.whole(value) if is_tensor else value
                if self.rank == 0:
                    own = gathered.to("cpu", copy=True) if is_tensor else gathered
                    cast(VLAPolicy, self._whole).optimizer.state[targets[name]][key] = own
        if self._whole is not None:
            _copy_settings(self.policy.optimizer, self._whole.optimizer)
        return th.stack(sums).tolist() if sums else []

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tells errors of collectives, which torch raises as RuntimeError, from all others."""
        try:
            yield
        except RuntimeError as error:
            if type(error) is not RuntimeError and not isinstance(error, dist.DistError):
                raise
            raise RanksError(
                f"Learner {self.rank} of {self.size} could not share weights with the others: one is gone, or took "
                f"longer than {self.deadline_s:g} s ({reason(error)})."
            ) from error


def sharded(policy: VLAPolicy, mesh: DeviceMesh) -> VLAPolicy:
    """A copy of a policy and its optimizer of which each rank of a mesh holds a share; the value head stays whole."""
    module = policy._backbone
    memo: dict[int, Any] = {id(policy.optimizer): None}
    for parameter in module.parameters():  # there is never a second whole one
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    twin = copy.deepcopy(policy, memo)
    backbone = twin._backbone
    for blocks in [part for part in backbone.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    for name in _PASSES:
        register_fsdp_forward_method(backbone, name)
    shares: dict[int, nn.Parameter] = {}
    state: dict[str, th.Tensor] = dict(backbone.named_buffers(remove_duplicate=False))
    wholes = dict(module.named_parameters(remove_duplicate=False))
    for name, empty in backbone.named_parameters(remove_duplicate=False):
        if id(empty) not in shares:
            share = _share(wholes[name].detach(), cast(DTensor, empty))
            shares[id(empty)] = nn.Parameter(share, empty.requires_grad)
        state[name] = shares[id(empty)]
    backbone.load_state_dict(state, strict=False, assign=True)
    twin._build_optimizer(lambda _: 0.0)
    _share_moments(policy, twin)
    _copy_settings(policy.optimizer, twin.optimizer)
    return twin


def _share_moments(policy: VLAPolicy, twin: VLAPolicy) -> None:
    own = dict(policy.named_parameters())
    on_device = {  # where torch's own load_state_dict puts the counts of steps
        id(parameter)
        for group in policy.optimizer.param_groups
        for parameter in group["params"]
        if group.get("fused") or group.get("capturable")
    }
    for name, parameter in twin.named_parameters():
        whole = own[name]
        for key, value in policy.optimizer.state.get(whole, {}).items():
            if isinstance(value, th.Tensor):
                value = share_moment(key, value, parameter.detach(), id(whole) in on_device)
            twin.optimizer.state[parameter][key] = value


def share_moment(key: str, whole: th.Tensor, like: th.Tensor, count_on_device: bool) -> th.Tensor:
    """This rank's share of what an optimizer keeps of a parameter, of whose share ``like`` is the data."""
    if not whole.ndim:
        return whole.to(like.device if count_on_device else whole.device, copy=True)
    if not isinstance(like, DTensor):
        return whole.to(like.device, copy=True)
    if whole.shape != like.shape:
        raise EngineError(
            f"shard=True splits what an optimizer keeps as it splits the weights, and {key!r} has the shape "
            f"{tuple(whole.shape)} for weights of {tuple(like.shape)}: train with an optimizer such as AdamW, or "
            "without shard=True."
        )
    return _share(whole, like)


def _copy_settings(of: th.optim.Optimizer, to: th.optim.Optimizer) -> None:
    for group, settings in zip(to.param_groups, of.param_groups, strict=True):
        group.update({key: value for key, value in settings.items() if key != "params"})


def _share(whole: th.Tensor, like: DTensor) -> DTensor:
    """This rank's share of a tensor that all ranks have whole: some of its rows, as FSDP2 splits them."""
    mesh, rank = like.device_mesh, like.device_mesh.get_local_rank()
    chunks = whole.chunk(mesh.size())
    own = chunks[rank] if rank < len(chunks) else whole[:0]
    own = own.to(mesh.device_type, copy=True, memory_format=th.contiguous_format)
    return DTensor.from_local(own, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def _mesh(rank: int, size: int, store: dist.Store, device: th.device, host: str, deadline_s: float) -> DeviceMesh:
    """All ranks, as FSDP2 takes them: it needs the default process group."""
    if dist.is_initialized():
        raise EngineError(
            "shard=True needs torch.distributed's default process group, and this program has one already: close the "
            "engine that made it, or call torch.distributed.destroy_process_group()."
        )

    backend = "nccl" if device.type == "cuda" else _gloo_at(device, host)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=seconds(deadline_s))
    return DeviceMesh.from_group(cast(dist.ProcessGroup, dist.group.WORLD), device.type)


def _gloo_at(device: th.device, host: str) -> str:
    """A backend that is Gloo on the network that the host's address belongs to; Gloo's own goes by the host's name."""

    def make(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
        return make_group(rank, size, store, device, host, timeout.total_seconds())

    name = f"gloo_at_{host.replace('.', '_').replace(':', '_')}"
    if not hasattr(dist.Backend, name.upper()):
        dist.Backend.register_backend(name, make, devices=["cpu"])
    return name
