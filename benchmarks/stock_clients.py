"""Evaluations written for LIBERO, on LIBERO's own environments and on ours: episodes a minute, processor seconds.

    python benchmarks/stock_clients.py --repeats 3 --out benchmarks/results/stock_clients.json

Four loops make the calls that the evaluations of OpenVLA-OFT, openpi, SimpleVLA-RL and LeRobot make. The policy replays
actions that the scripted expert has found in the very same episodes, so a run also says whether each episode ends
alike, at the same step, on every simulator. Stock, ours with exact and ours with fast frames take turns, each in a
process of its own. Imports are not timed; making environments is.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIMULATORS = ("stock", "exact", "fast")
SUITE = "libero_spatial"
WAIT_STEPS, LIMIT = 10, 220
WAIT_ACTION = [0.0] * 6 + [-1.0]
N_ENVS = 2


class Policy:
    """Replays an episode's actions, or lets the scripted expert find them.

    Args:
        path: Where actions are kept.
        record: Whether to find them; the environments are ours then.
    """

    def __init__(self, path: Path, record: bool) -> None:
        self.path, self.record = path, record
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def episode(self, env: Any, key: str) -> Iterator[list[float]]:
        """The actions of an episode that waits no longer."""
        if not self.record:
            yield from self.known[key]
            return
        from libero_gym.experts.expert import Expert

        expert, actions = Expert(env._simulator), []
        while len(actions) < LIMIT:
            actions.append(expert.act().tolist())
            yield actions[-1]
            self.known[key] = actions

    def save(self) -> None:
        """Keep what was found."""
        if self.record:
            self.path.write_text(json.dumps(self.known))


def turned(image: np.ndarray) -> np.ndarray:
    """A frame as policies see it: turned, 224 pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image[::-1, ::-1])).resize((224, 224)))


def seen(obs: dict[str, Any]) -> tuple[Any, ...]:
    """What openpi's and OpenVLA-OFT's policies are shown of an observation."""
    state = [obs[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
    return turned(obs["agentview_image"]), turned(obs["robot0_eye_in_hand_image"]), np.concatenate(state)


def task_and_env(task_id: int, **arguments: Any) -> tuple[Any, Any]:
    """Initial states of a task, and its environment, by LIBERO's own calls."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark_dict()[SUITE]()
    task = suite.get_task(task_id)
    path = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    return suite.get_task_init_states(task_id), OffScreenRenderEnv(bddl_file_name=path, **arguments)


def play(env: Any, state: np.ndarray, policy: Policy, key: str, look: Callable[[Any, int], object]) -> tuple[Any, ...]:
    """One episode after a reset; ``look`` gets the observation and the number of steps before each action."""
    obs, done, steps = env.set_init_state(state), False, 0
    for _ in range(WAIT_STEPS):
        obs, _, done, _ = env.step(WAIT_ACTION)
    for action in policy.episode(env, key):
        look(obs, steps)
        obs, _, done, _ = env.step(action)
        steps += 1
        if done:
            break
    return key, done, steps


def step_by_step(task_ids: list[int], trials: int, policy: Policy, seed: int) -> Iterator[tuple[Any, ...]]:
    """One environment a task, seeded once, reset before each trial; each step's frames are looked at."""
    for task_id in task_ids:
        states, env = task_and_env(task_id, camera_heights=256, camera_widths=256)
        env.seed(seed)
        for trial in range(trials):
            env.reset()
            yield play(env, states[trial], policy, f"{seed}/{task_id}/{trial}", lambda obs, _: seen(obs))
        env.close()


def openvla_oft(task_ids: list[int], trials: int, policy: Policy) -> Iterator[tuple[Any, ...]]:
    """As OpenVLA-OFT's evaluation: seed 0."""
    yield from step_by_step(task_ids, trials, policy, 0)


def openpi(task_ids: list[int], trials: int, policy: Policy) -> Iterator[tuple[Any, ...]]:
    """As openpi's client: seed 7."""
    yield from step_by_step(task_ids, trials, policy, 7)


def simplevla_rl(task_ids: list[int], trials: int, policy: Policy) -> Iterator[tuple[Any, ...]]:
    """As SimpleVLA-RL's rollouts: a process for each episode, chunks of eight actions, one look after each chunk."""
    import multiprocessing

    context = multiprocessing.get_context("fork" if policy.record else "spawn")
    places = [(task_id, trial) for task_id in task_ids for trial in range(trials)]
    with context.Pool(N_ENVS, maxtasksperchild=1) as pool:
        for found, *rest in pool.imap(_chunked, [(place, policy.path, policy.record) for place in places]):
            policy.known |= found
            yield tuple(rest)


def at_a_chunk(obs: dict[str, Any], steps: int) -> None:
    """Look before each eighth step."""
    if steps % 8 == 0:
        turned(obs["agentview_image"])


def _chunked(job: tuple[tuple[int, int], Path, bool]) -> tuple[Any, ...]:
    (task_id, trial), path, record = job
    policy = Policy(path, record)
    states, env = task_and_env(task_id, camera_heights=256, camera_widths=256)
    env.seed(0)
    env.reset()
    played = play(env, states[trial], policy, f"chunked/{task_id}/{trial}", at_a_chunk)
    env.close()
    return policy.known if record else {}, *played


def lerobot(task_ids: list[int], trials: int, policy: Policy) -> Iterator[tuple[Any, ...]]:
    """As LeRobot's environment: reset when it is made, seeded before each episode, the robot's whole state read."""
    for task_id in task_ids:
        states, env = task_and_env(task_id, camera_heights=256, camera_widths=256)
        env.reset()
        for trial in range(trials):
            env.seed(1000 + trial)
            env.reset()
            look = functools.partial(whole, env)
            yield play(env, states[trial], policy, f"lerobot/{task_id}/{trial}", look)
        env.close()


def whole(env: Any, obs: dict[str, Any], steps: int) -> tuple[Any, ...]:
    """What LeRobot's environment reads of an observation."""
    names = ("eef_pos", "eef_quat", "gripper_qpos", "gripper_qvel", "joint_pos", "joint_vel")
    state = [obs[f"robot0_{name}"] for name in names], env.robots[0].controller.ee_ori_mat
    return obs["agentview_image"].copy(), obs["robot0_eye_in_hand_image"].copy(), state


CLIENTS: dict[str, Callable[[list[int], int, Policy], Iterator[tuple[Any, ...]]]] = {
    "openvla-oft": openvla_oft,
    "openpi": openpi,
    "simplevla-rl": simplevla_rl,
    "lerobot": lerobot,
}


def run_here(args: argparse.Namespace) -> None:
    """One client on one simulator in this process; prints a line of JSON."""
    record = args.simulator == "record"
    if args.simulator != "stock":
        import libero_gym

        os.environ["LIBERO_GYM_STOCK_RENDERER"] = "fast" if record else args.simulator
        libero_gym.install_stock_api()
    import libero.libero.envs  # noqa: F401 - so that it is not timed

    policy = Policy(args.actions, record)
    start, before = time.perf_counter(), _processor_seconds()
    episodes = list(CLIENTS[args.client](args.tasks, args.trials, policy))
    figures = {"seconds": time.perf_counter() - start, "processor_seconds": _processor_seconds() - before}
    policy.save()
    print(json.dumps(figures | {"episodes": episodes}))


def first_observation(args: argparse.Namespace) -> None:
    """Seconds from a task's name to its first frames, imports apart; prints a line of JSON."""
    import libero_gym

    os.environ["LIBERO_GYM_STOCK_RENDERER"] = args.simulator
    libero_gym.install_stock_api()
    import libero.libero.envs  # noqa: F401

    start = time.perf_counter()
    states, env = task_and_env(args.tasks[0], camera_heights=256, camera_widths=256)
    env.seed(0)
    env.reset()
    seen(env.set_init_state(states[0]))
    print(json.dumps({"seconds": time.perf_counter() - start}))


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def in_another_process(args: argparse.Namespace, actions: Path, simulator: str, client: str) -> dict[str, Any]:
    """What `run_here` or `first_observation` says."""
    command = [sys.executable, __file__, "--simulator", simulator, "--client", client, "--actions", str(actions)]
    command += ["--trials", str(args.trials), "--tasks", *map(str, args.tasks)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{client} on {simulator}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--tasks", nargs="+", type=int, default=[0])
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--simulator", choices=("record", *SIMULATORS), help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--actions", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client == "first":
        first_observation(args)
        return
    if args.client:
        run_here(args)
        return

    from measuring import against, provenance, report, summary
    from tqdm import tqdm

    results: dict[str, Any] = {"provenance": provenance(), "tasks": args.tasks, "trials": args.trials, "clients": {}}
    progress = tqdm(total=len(args.clients) * (1 + 3 * args.repeats) + 2 * args.repeats, unit="run", disable=None)
    with tempfile.TemporaryDirectory() as folder:
        actions = Path(folder) / "actions.json"
        for client in args.clients:
            in_another_process(args, actions, "record", client)
            progress.update()
            runs: dict[str, list[dict[str, Any]]] = {simulator: [] for simulator in SIMULATORS}
            for _ in range(args.repeats):
                for simulator, found in runs.items():
                    found.append(in_another_process(args, actions, simulator, client))
                    progress.update()
            results["clients"][client] = _compared(runs, against)
        first: dict[str, list[float]] = {"exact": [], "fast": []}
        for _ in range(args.repeats):
            for simulator, seconds in first.items():
                seconds.append(in_another_process(args, actions, simulator, "first")["seconds"])
                progress.update()
        results["first_observation_s"] = {simulator: summary(seconds) for simulator, seconds in first.items()}
    report(results, args.out)


def _compared(runs: dict[str, list[dict[str, Any]]], against: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Rates, processor time, and how many episodes end as stock's do."""
    n = len(runs["stock"][0]["episodes"])
    stock = {key: (done, steps) for key, done, steps in runs["stock"][0]["episodes"]}
    compared: dict[str, Any] = {"episodes": n, "successes": sum(done for done, _ in stock.values())}
    for simulator in ("exact", "fast"):
        alike = [sum(stock[key] == (done, steps) for key, done, steps in run["episodes"]) for run in runs[simulator]]
        compared[simulator] = {"end_like_stock": min(alike)}
        for name, figure in (("seconds_per_episode", "seconds"), ("processor_s_per_episode", "processor_seconds")):
            ours, theirs = ([run[figure] / n for run in runs[which]] for which in (simulator, "stock"))
            compared[simulator][name] = against(ours, theirs)
    return compared


if __name__ == "__main__":
    main()
