"""Where the time of a training goes: CPU milliseconds of each part, for each decision.

    python benchmarks/training_profile.py --out benchmarks/results/training_profile.json    # two minutes on two cores
    python benchmarks/training_profile.py --physics coarse --autocast bfloat16

Environments are profiled in this process, one at a time, under the scripted expert: its control steps grasp and carry
as a policy's do. Then a short training says how long rollouts and updates take with the workers, and how busy these
are; what no part accounts for is waiting and transport.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import provenance, report
from stable_baselines3.common.logger import KVWriter, Logger

from libero_gym.env import LiberoEnv
from libero_gym.experts import Expert
from libero_gym.rendering import renderer as rendering
from vla_agent.commands.train import Options, make_environments, make_learner

SUITE, TASKS = "libero_spatial", (0, 1, 2)
CHUNK, IMAGE_SIZE, LIMIT = 8, 112, 220
N_EPISODES = 3  # of each task
PHASES = ("rollout", "decode", "env", "update")


class Phases(KVWriter):
    """Keeps what was logged last."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.last |= key_values

    def close(self) -> None:
        """Nothing is open."""


class CpuClock:
    """CPU seconds of this process by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[part] += time.process_time() - start


def environments(physics: str) -> dict[str, float]:
    """CPU milliseconds of an environment's parts for each decision of an episode."""
    clock, n_decisions = CpuClock(), 0
    common: dict[str, Any] = {"physics": physics, "privileged": True, "task_id": TASKS}
    blind = LiberoEnv(SUITE, cameras=(), **common)
    with contextlib.closing(blind):
        for task_id in TASKS:
            for state in range(19, 20 + N_EPISODES):
                is_first = state == 19  # fills caches
                with clock("first" if is_first else "reset and settling"):
                    blind.reset(options={"task_id": task_id, "init_state_id": state})
                if not is_first:
                    n_decisions += play(blind, clock)
    del clock.seconds["first"]
    return {name: 1e3 * seconds / n_decisions for name, seconds in clock.seconds.items()}


def play(env: LiberoEnv, clock: CpuClock) -> int:
    """An episode by the expert, observed every eight control steps; the number of such chunks."""
    simulator, task = env.simulator, env.task
    assert task is not None
    expert, number = Expert(simulator), 0
    while number < LIMIT and not simulator.success:
        for _ in range(CHUNK):
            action = np.asarray(expert.act(), dtype=np.float64)
            with clock("physics, eight control steps"):
                simulator.step(action)
        number += CHUNK
        with clock("frame"):
            rendering.render(simulator, ("agentview",), IMAGE_SIZE, None, "fast", 1)
        with clock("robot's state and privileged numbers"):
            env._observe(number)
    return number // CHUNK


def training(options: Options, n_iterations: int) -> dict[str, float]:
    """Wall-clock milliseconds of a training's phases for each decision, after the first iteration."""
    n_decisions = options.n_envs * options.n_steps
    rows = []
    with contextlib.closing(make_environments(options)) as env:
        model, phases = make_learner(options, env, None), Phases()
        model.set_logger(Logger(None, [phases]))
        for _ in range(1 + n_iterations):
            start, cpu = time.perf_counter(), workers_cpu(env)
            model.learn(n_decisions, reset_num_timesteps=False)
            row = {"all": time.perf_counter() - start, "CPU of the workers": workers_cpu(env) - cpu}
            rows.append(row | {name: phases.last[f"time/{name}_s"] for name in PHASES})
    return {name: 1e3 * float(np.mean([row[name] for row in rows[1:]])) / n_decisions for name in rows[0]}


def workers_cpu(env: Any) -> float:
    """CPU seconds that the environments' processes have used."""
    ticks = 0
    for pid in sorted(set(env.unwrapped.venv.backend.process_ids)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--physics", default="fast")
    parser.add_argument("--autocast", default="auto")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            env_id="LIBERO-Spatial-v0",
            task_ids=",".join(map(str, TASKS)),
            physics=args.physics,
            autocast=args.autocast,
            critic_warmup_iterations=0,
            out=Path(folder),
        )
        found = {"environment, CPU ms": environments(args.physics), "training, ms": training(options, args.iterations)}
    rounded = {part: {name: round(value, 2) for name, value in rows.items()} for part, rows in found.items()}
    report({"provenance": provenance(), "physics": args.physics, "autocast": args.autocast, **rounded}, args.out)


if __name__ == "__main__":
    main()
