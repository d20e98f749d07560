"""Measures the pieces of the model of scaling, and iterations to check it by."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from scaling.model import ENVS_PER_UNIT, N_STEPS, Pieces
from vla_agent import VLAPPO, RayEngine, make_vec_env
from vla_agent.engines.budget import n_bytes
from vla_agent.engines.ranks import ProcessRanks, Rendezvous

ENV: dict[str, Any] = {
    "model": "tiny-libero",
    "task_id": [0, 1],
    "renderer": "fast",
    "physics": "fast",
    "seed": 0,
    "n_workers": 1,  # a unit is one core
}
PPO: dict[str, Any] = {
    "n_steps": N_STEPS,
    "n_epochs": 1,
    "n_value_epochs": 1,
    "critic_warmup_iterations": 0,
    "policy_kwargs": {"model": "tiny-libero", "temperature": 0.5},
    "seed": 0,
    "device": "cpu",
}


class Times(BaseCallback):
    """Seconds of a training's iterations, and of what they consist of, but for the first iteration and the last.

    The first fills caches; of the last, the end is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []
        self.logged: list[dict[str, float]] = []

    def _init_callback(self) -> None:
        # What a rollout took is written, and forgotten, before a callback hears of anything again.
        writer = _Writer(self.logged)
        self.model.set_logger(Logger(None, [writer]))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())

    @property
    def iterations(self) -> list[float]:
        """Seconds of iterations."""
        return list(np.diff(self.starts))[1:]

    def phase(self, name: str) -> list[float]:
        """Seconds of "rollout", of its "env" or "decode", or of "update", by iteration."""
        after = int(name == "update")  # it is written with the rollout that follows it
        return [logged[f"time/{name}_s"] for logged in self.logged[1 + after : len(self.starts) - 1 + after]]


class _Writer(KVWriter):
    """Keeps what is logged."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def train(make: Callable[..., Any], n_iterations: int, units: int = 1, n_batches: int = 1, **env: Any) -> Any:
    """A training of some iterations of the recipe for so many units, and its times."""
    n_envs = ENVS_PER_UNIT * units
    envs = make("LIBERO-Spatial-v0", n_envs, **ENV | env)
    try:
        model = VLAPPO("VLAPolicy", envs, **PPO, batch_size=n_envs * N_STEPS // n_batches)
        times = Times()
        model.learn((n_iterations + 2) * n_envs * N_STEPS, callback=times)
    finally:
        envs.close()
    return model, times


def measure_env(env: Any, n_steps: int) -> float:
    """Seconds of a step of an environment that acts at random."""
    env.reset(seed=0)
    env.action_space.seed(0)
    seconds = []
    for _ in range(n_steps):
        action = env.action_space.sample()
        start = time.perf_counter()
        ended = env.step(action)
        seconds.append(time.perf_counter() - start)
        if ended[2] or ended[3]:
            env.reset()
    env.close()
    return statistics.median(seconds)


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, of the least squares."""
    slope, intercept = np.polyfit(xs, ys, 1)
    return max(float(intercept), 0.0), max(float(slope), 0.0)


def received(items: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Reads arrays, in another process."""
    for position, item in enumerate(items):
        yield position, int(np.asarray(item).sum())


def measure_calls(engine: RayEngine, repeats: int) -> tuple[float, float]:
    """Seconds of a call of another process, and of a byte that it reads."""
    cluster, actor = engine.roster.cluster, engine.roster.actor(0)
    sizes, times = (1_000, 20_000_000), []
    for size in sizes:
        seconds = []
        for _ in range(repeats):
            arrays = [np.ones(size, dtype=np.uint8)]
            start = time.perf_counter()
            stream = actor.work.options(num_returns="streaming").remote(received, cluster.ray.put(arrays))
            cluster.ray.get(next(stream))
            seconds.append(time.perf_counter() - start)
        times.append(statistics.median(seconds))
    return line(sizes, times)


def told_items(items: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What four environments tell of steps, from another process."""
    for position, _ in enumerate(items):
        infos = [{"task_id": 0, "is_success": False, "task_name": "task", "elapsed_steps": 8}] * 4
        numbers = {"actions": np.zeros((4, 56)), "rewards": np.zeros(4), "log_probs": th.zeros(4, 56)}
        yield position, numbers | {"infos": infos}


def measure_items(engine: RayEngine, repeats: int) -> float:
    """Seconds to read what another process tells of a step, once it is there."""
    cluster, actor = engine.roster.cluster, engine.roster.actor(0)
    n_items = 10 * repeats
    stream = actor.work.options(num_returns="streaming").remote(told_items, cluster.ray.put(list(range(n_items))))
    cluster.ray.get(next(stream))
    time.sleep(2.0)  # until all are told
    start = time.perf_counter()
    for reference in stream:
        cluster.ray.wait([reference], fetch_local=False)
        cluster.ray.get(reference)
    return (time.perf_counter() - start) / (n_items - 1)


def _reduce(rank: int, store: Any, host: str, sizes: Sequence[int], repeats: int) -> list[float]:
    th.set_num_threads(1)
    ranks = ProcessRanks(rank, 2, store, th.device("cpu"), host, 60.0)
    medians = []
    for size in sizes:
        tensor, seconds = th.zeros(size // 4), []
        for _ in range(repeats):
            start = time.perf_counter()
            ranks.sum([tensor])
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    return medians


def _other_rank(port: int, sizes: Sequence[int], repeats: int) -> None:
    from torch.distributed import TCPStore

    _reduce(1, TCPStore("127.0.0.1", port, is_master=False), "127.0.0.1", sizes, repeats)


def measure_reduce(repeats: int) -> tuple[float, float]:
    """Seconds of an all-reduce of two processes, and of each byte."""
    sizes = (4_000, 4_000_000, 16_000_000)
    meeting = Rendezvous("127.0.0.1", 60.0)
    other = multiprocessing.get_context("spawn").Process(target=_other_rank, args=(meeting.port, sizes, repeats))
    other.start()
    times = _reduce(0, meeting.store, "127.0.0.1", sizes, repeats)
    other.join()
    return line(sizes, times)


def measure_again(model: Any) -> float:
    """Seconds of a row that is scored once more, as the learner of stale rollouts does."""
    buffer = model.rollout_buffer
    rows = {key: buffer.to_torch(values) for key, values in buffer.observations.items()}  # minibatches flattened them
    actions = buffer.to_torch(buffer.actions)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with th.no_grad():
            model.policy.score(rows, actions)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / len(actions)


def measure(repeats: int, n_iterations: int) -> tuple[Pieces, dict[str, float]]:
    """The pieces of tiny-libero on one core, and seconds of an iteration by placement."""
    middle, n = statistics.median, ENVS_PER_UNIT * N_STEPS
    whole, times = train(make_vec_env, n_iterations)
    _, parted = train(make_vec_env, n_iterations, n_batches=4)
    _, double = train(make_vec_env, n_iterations, units=2)
    seconds = {"local": middle(times.iterations)}
    # A step's seconds besides its environments', by rows; what a rollout does once is small beside its steps.
    besides = [
        middle(np.subtract(found.phase("rollout"), found.phase("env")).tolist()) / N_STEPS for found in (times, double)
    ]
    decode_call_s, decode_row_s = line((ENVS_PER_UNIT, 2 * ENVS_PER_UNIT), besides)
    all_s, batch_s = line((1, 4), [middle(found.phase("update")) for found in (times, parted)])
    between = np.subtract(times.iterations, np.add(times.phase("rollout"), times.phase("update")))
    reduce_call_s, reduce_byte_s = measure_reduce(repeats)
    with RayEngine(1, 1, placement="split", cpus_per_worker=1) as engine:
        call_s, byte_s = measure_calls(engine, repeats)
        item_s = measure_items(engine, repeats)
        # Both units' cores are its environments', since who learns waits.
        seconds["split"] = middle(train(engine.make_vec_env, n_iterations, 2, n_workers=2)[1].iterations)
    with RayEngine(1, 1, placement="split", stale=True, cpus_per_worker=1) as engine:
        seconds["stale"] = middle(train(engine.make_vec_env, n_iterations, 2)[1].iterations)
    with RayEngine(2, cpus_per_worker=1) as engine:
        seconds["colocated"] = middle(train(engine.make_vec_env, n_iterations, 2)[1].iterations)
    trained = [p for group in whole.policy.optimizer.param_groups for p in group["params"]]
    pieces = Pieces(
        env_s=middle(times.phase("env")) / n,
        decode_call_s=decode_call_s,
        decode_row_s=decode_row_s,
        update_batch_s=batch_s,
        update_row_s=all_s / n,
        again_row_s=measure_again(whole),
        between_s=middle(between.tolist()),
        reduce_call_s=reduce_call_s,
        reduce_byte_s=reduce_byte_s,
        call_s=call_s,
        item_s=item_s,
        byte_s=byte_s,
        trained_bytes=n_bytes(trained),
        sample_bytes=sum(value.nbytes for value in whole.rollout_buffer.observations.values()) / n,
    )
    return pieces, seconds
