"""How training scales from 1 to 64 GPUs by a model of measured pieces, and how near the model is to runs here.

    python benchmarks/scaling_model.py --out benchmarks/results/scaling_model.json    # two cores, ten minutes

A *unit* is what a process computes on: one core for ``tiny-libero``, one GPU with its share of cores for the 7B. The
model is of one iteration: all environments are stepped ``n_steps`` times, then all minibatches are learned from.

    step    = environments / cores + decode(rows of a policy)
    rollout = n_steps * step + what learner 0 reads of the others' steps + what policies send to it
    update  = minibatches * (fixed + rows of a learner * per row + all-reduce) + what learner 0 sends to the others
    colocated: rollout + update, with all units in both
    split:     rollout + weights + update, with P units in the first and L = units - P in the last
    stale:     the larger of (rollout + weights) and update

P is the best for each number of units. Assumptions:

- Work grows with the units: environments and minibatch for each unit stay the same, so an ideal is a straight line.
- Cores belong to environments wherever their policy is, so that a split loses none of them.
- Decoding and updates are linear in rows: a fixed part (weights that are read) and one for each row.
- An all-reduce is a ring: 2 (L - 1) / L of the trained bytes through each unit's link.
- Policies play ahead without waiting: learner 0 reads what each tells of a step, between its own steps where it plays.
- Rollouts arrive at learner 0 one after the other, and leave it once for each further machine.
- All processes are equally fast: no waits for the slowest, no losses.

Measured here: the environment's decision, decode, update, a call, a byte between processes, an all-reduce. The 7B's
decode and update are *assumed*: the counted operations and bytes of ``results/policy_memory.json`` at the rates of
`ASSUMED`, which nobody measured. Its environment's control step is measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from measuring import commit, provenance, report
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from vla_agent import VLAPPO, RayEngine, make_vec_env
from vla_agent.engines.budget import n_bytes
from vla_agent.engines.ranks import ProcessRanks, Rendezvous

TREE = Path(__file__).resolve().parent
UNITS = (1, 2, 4, 8, 16, 32, 64)
ENVS_PER_UNIT, N_STEPS = 4, 16
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
# For a machine of eight H200: none of this was measured.
ASSUMED = {
    "matrix_flop_per_s": 0.4 * 989e12,  # 40 % of the dense bfloat16 rate that NVIDIA states
    "memory_bytes_per_s": 4.0e12,  # as in policy_memory.py
    "link_bytes_per_s": 50e9,  # all-reduce, for each GPU: 400 Gb/s
    "network_bytes_per_s": 2.5e9,  # Ray's objects from machine to machine
    "cores_per_gpu": 24,
    "gpus_per_machine": 8,
}


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Seconds and bytes that the model is made of."""

    env_s: float  # an environment's decision, on one core
    decode_call_s: float
    decode_row_s: float
    update_batch_s: float  # a minibatch, besides its rows
    update_row_s: float  # a row of a minibatch, all epochs of the value head included
    reduce_call_s: float
    reduce_byte_s: float
    call_s: float  # a call of another process
    item_s: float  # what another process tells of a step, once it is there
    byte_s: float  # between processes
    trained_bytes: float
    sample_bytes: float  # of a rollout
    cores_per_unit: float = 1
    units_per_machine: int = 8


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an iteration is, for each unit."""

    envs: int = ENVS_PER_UNIT
    n_steps: int = N_STEPS
    batch: int = ENVS_PER_UNIT * N_STEPS
    n_epochs: int = 1


def rollout_s(pieces: Pieces, recipe: Recipe, units: int, players: int, elsewhere: int) -> float:
    """Seconds of a rollout that so many units play, of which some are other processes than learner 0."""
    n_envs, cores = recipe.envs * units, pieces.cores_per_unit * units
    env = max(pieces.env_s, n_envs * pieces.env_s / cores)
    decode = pieces.decode_call_s + n_envs / players * pieces.decode_row_s
    sent = elsewhere / players * n_envs * recipe.n_steps * pieces.sample_bytes * pieces.byte_s
    read = elsewhere * pieces.item_s
    step = env + decode + read if elsewhere < players else max(env + decode, read)
    return recipe.n_steps * step + (pieces.call_s if elsewhere else 0.0) + sent


def update_s(pieces: Pieces, recipe: Recipe, units: int, learners: int) -> float:
    """Seconds of an update that so many units compute."""
    samples, batch = recipe.envs * recipe.n_steps * units, recipe.batch * units
    n_batches = recipe.n_epochs * samples / batch
    reduce = sent = 0.0
    if learners > 1:
        machines = -(-learners // pieces.units_per_machine)
        ring = 2 * (learners - 1) / learners * pieces.trained_bytes
        reduce = pieces.reduce_call_s + ring * pieces.reduce_byte_s
        sent = machines * samples * pieces.sample_bytes * pieces.byte_s  # once into the store, then to each machine
    return n_batches * (pieces.update_batch_s + batch / learners * pieces.update_row_s + reduce) + sent


def iteration_s(pieces: Pieces, recipe: Recipe, units: int, players: int, *, split: bool, stale: bool = False) -> float:
    """Seconds of an iteration; ``players`` counts all units if they are colocated."""
    if not split:
        return rollout_s(pieces, recipe, units, units, units - 1) + update_s(pieces, recipe, units, units)
    machines = -(-players // pieces.units_per_machine)
    weights = players * pieces.call_s + machines * pieces.trained_bytes * pieces.byte_s
    played = rollout_s(pieces, recipe, units, players, players) + weights
    learned = update_s(pieces, recipe, units, units - players)
    return max(played, learned) if stale else played + learned


def scale(pieces: Pieces, recipe: Recipe) -> list[dict[str, Any]]:
    """Decisions per second of each placement, and the best split, by number of units."""
    rows = []
    for units in UNITS:
        n_samples = recipe.envs * recipe.n_steps * units
        row: dict[str, Any] = {"units": units}
        row["colocated"] = n_samples / iteration_s(pieces, recipe, units, units, split=False)
        for name, stale in (("split", False), ("stale", True)):
            if units == 1:
                continue
            times = {p: iteration_s(pieces, recipe, units, p, split=True, stale=stale) for p in range(1, units)}
            best = min(times, key=lambda players: times[players])
            row |= {name: n_samples / times[best], f"{name}_players": best}
        rows.append(row)
    return rows


def crossing(rows: list[dict[str, Any]], name: str) -> int | None:
    """The least number of units from which on a placement is ahead of the colocated one; None if it never is."""
    ahead = [row["units"] for row in rows if row.get(name, 0.0) > row["colocated"]]
    behind = [row["units"] for row in rows if name in row and row[name] <= row["colocated"]]
    later = [units for units in ahead if units > max(behind, default=0)]
    return min(later, default=None)


# ---------------------------------------------------------------------------------------------------- measuring


class Times(BaseCallback):
    """Seconds of iterations, and of their rollouts and updates, after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []
        self.rollouts: list[float] = []
        self.updates: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())

    def _on_rollout_end(self) -> None:
        self.rollouts.append(time.perf_counter() - self.starts[-1])
        if len(self.rollouts) > 1:  # of the iteration before
            self.updates.append(float(self.logger.name_to_value["time/update_s"]))

    @property
    def iterations(self) -> list[float]:
        """Seconds of each but the first, which fills caches, and the last, whose end is not seen."""
        return list(np.diff(self.starts))[1:]


def train(make: Callable[..., Any], n_iterations: int, units: int = 1, n_batches: int = 1) -> tuple[Any, Times]:
    """A training of some iterations of the recipe for so many units, and its times."""
    n_envs = ENVS_PER_UNIT * units
    env = make("LIBERO-Spatial-v0", n_envs, **ENV)
    try:
        model = VLAPPO("VLAPolicy", env, **PPO, batch_size=n_envs * N_STEPS // n_batches)
        times = Times()
        model.learn((n_iterations + 2) * n_envs * N_STEPS, callback=times)
    finally:
        env.close()
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


def measure_decode(model: Any, repeats: int) -> tuple[float, float]:
    """Seconds of a call of `act`, and of each row."""
    rows = (1, 4, 16)
    spaces = model.observation_space.spaces
    times = []
    for n in rows:
        obs = obs_as_tensor({key: np.stack([space.sample()] * n) for key, space in spaces.items()}, model.device)
        obs["input_ids"], obs["attention_mask"] = (th.ones_like(obs[key]) for key in ("input_ids", "attention_mask"))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            with th.no_grad():
                model.policy.act(obs)
            seconds.append(time.perf_counter() - start)
        times.append(statistics.median(seconds))
    return line(rows, times)


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


def measure(repeats: int, n_iterations: int) -> tuple[Pieces, dict[str, float]]:
    """The pieces of tiny-libero on one core, and seconds of an iteration by placement."""
    seconds = {}
    whole, times = train(make_vec_env, n_iterations)
    seconds["local"] = statistics.median(times.iterations)
    n = ENVS_PER_UNIT * N_STEPS
    _, parted = train(make_vec_env, n_iterations, n_batches=4)
    batch_s, all_s = line((1, 4), [statistics.median(found.updates) for found in (times, parted)])[::-1]
    chunk = {"image_size": 112, "renderer": "fast", "physics": "fast", "chunk_size": 8}
    env_s = measure_env(gym.make("LIBERO-Spatial-v0", **chunk), 10 * repeats)
    decode_call_s, decode_row_s = measure_decode(whole, repeats)
    reduce_call_s, reduce_byte_s = measure_reduce(repeats)
    with RayEngine(1, 1, placement="split", cpus_per_worker=1) as engine:
        call_s, byte_s = measure_calls(engine, repeats)
        item_s = measure_items(engine, repeats)
        seconds["split"] = statistics.median(train(engine.make_vec_env, n_iterations, 2)[1].iterations)
    with RayEngine(1, 1, placement="split", stale=True, cpus_per_worker=1) as engine:
        seconds["stale"] = statistics.median(train(engine.make_vec_env, n_iterations, 2)[1].iterations)
    with RayEngine(2, cpus_per_worker=1) as engine:
        seconds["colocated"] = statistics.median(train(engine.make_vec_env, n_iterations, 2)[1].iterations)
    trained = [p for group in whole.policy.optimizer.param_groups for p in group["params"]]
    frame = sum(value[0, 0].nbytes for value in whole.rollout_buffer.observations.values())
    pieces = Pieces(
        env_s,
        decode_call_s,
        decode_row_s,
        batch_s,
        all_s / n,
        reduce_call_s,
        reduce_byte_s,
        call_s,
        item_s,
        byte_s,
        n_bytes(trained),
        frame,
    )
    return pieces, seconds


def seven_billion(measured: Pieces, env_s: float) -> Pieces:
    """The 7B's pieces: assumed rates, and counted operations and bytes."""
    counted = json.loads((TREE / "results" / "policy_memory.json").read_text())
    decoding = {entry["batch"]: entry for entry in counted["decoding"]}
    plain = [e for e in counted["updates"] if not (e["gradient_checkpointing"] or e["pefts_layers"])]
    updates = {entry["micro_batch"]: entry for entry in plain}

    def row_s(table: dict[int, dict[str, float]], low: int, high: int) -> float:
        flop, gigabytes = (
            (table[high][key] - table[low][key]) / (high - low) for key in ("matrix_tflop", "elementwise_gb")
        )
        return flop * 1e12 / ASSUMED["matrix_flop_per_s"] + gigabytes * 1e9 / ASSUMED["memory_bytes_per_s"]

    weights_s = decoding[1]["weights_gb"] * 1e9 / ASSUMED["memory_bytes_per_s"]
    trained = (updates[1]["weights_gb"] - decoding[1]["weights_gb"]) * 1e9
    return dataclasses.replace(
        measured,
        env_s=env_s,
        decode_call_s=7 * weights_s,  # weights are read for each of seven tokens
        decode_row_s=row_s(decoding, 8, 32),
        update_batch_s=3 * weights_s,  # forward, backward, and the optimizer with it
        update_row_s=row_s(updates, 8, 16),
        reduce_call_s=1e-4,
        reduce_byte_s=1 / ASSUMED["link_bytes_per_s"],
        byte_s=1 / ASSUMED["network_bytes_per_s"],
        trained_bytes=trained,
        sample_bytes=224 * 224 * 3,
        cores_per_unit=ASSUMED["cores_per_gpu"],
        units_per_machine=int(ASSUMED["gpus_per_machine"]),
    )


def check(pieces: Pieces, seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of an iteration by the model, as measured, and their ratio."""
    at = functools.partial(iteration_s, pieces, Recipe())
    by_model = {
        "local": at(1, 1, split=False),
        "colocated": at(2, 2, split=False),
        "split": at(2, 1, split=True),
        "stale": at(2, 1, split=True, stale=True),
    }
    return {
        name: {"model_s": by_model[name], "measured_s": seconds[name], "ratio": by_model[name] / seconds[name]}
        for name in by_model
    }


def rounded(value: Any) -> Any:
    """The same with numbers of four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Decisions per second by units, and where the placements cross."""
    lines = [f"{name}: decisions per second", "units  colocated      split (players)      stale (players)"]
    for row in rows:
        text = f"{row['units']:5}  {row['colocated']:9.1f}"
        for kind in ("split", "stale"):
            text += f"  {row[kind]:9.1f} ({row[f'{kind}_players']:3})     " if kind in row else ""
        lines.append(text.rstrip())
    for kind in ("split", "stale"):
        units = crossing(rows, kind)
        lines.append(
            f"{kind} is ahead of colocated " + (f"from {units} units on" if units else "at no number of units")
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the pieces, checks the model, and scales it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran, for the file")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    commit()
    pieces, seconds = measure(args.repeats, args.iterations)
    step = gym.make("LIBERO-Spatial-v0", image_size=256, renderer="fast", physics="fast")
    large = seven_billion(pieces, measure_env(step, 10 * args.repeats))
    models = {
        "tiny-libero, a core each": (pieces, Recipe()),
        "7B, assumed": (large, Recipe(envs=8, n_steps=32, batch=16)),
    }
    results: dict[str, Any] = {"provenance": provenance(), "note": args.note, "assumed": ASSUMED, "models": {}}
    results["check"] = check(pieces, seconds)
    for name, (of, recipe) in models.items():
        rows = scale(of, recipe)
        print(table(name, rows) + "\n")
        results["models"][name] = {
            "pieces": dataclasses.asdict(of),
            "recipe": dataclasses.asdict(recipe),
            "decisions_per_s": rows,
            "ahead_of_colocated_from": {kind: crossing(rows, kind) for kind in ("split", "stale")},
        }
    report(rounded(results), args.out)


if __name__ == "__main__":
    main()
