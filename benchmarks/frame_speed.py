"""What frames cost: stock, exact and fast, and optionally the fast ones of an earlier commit, interleaved.

    python benchmarks/frame_speed.py --out benchmarks/results/frame_speed.json     # half an hour on two quiet cores
    git worktree add ../earlier 15f2cf8
    python benchmarks/frame_speed.py --earlier ../earlier --out benchmarks/results/frame_speed.json

Frames are drawn by one process per checkout, which take turns; a figure is CPU time, posing included, of which the
least and the median of all rounds are given. Vector environments and stock's ``SubprocVectorEnv`` take turns as well,
in control steps per second, with a 128-pixel frame from one camera for each step, or for each chunk of 8. Memory is
that of four workers, the process that made them and their template, by proportional set size; start-up is a first frame
in a fresh process with a warm cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 3), ("libero_10", 2))
SIZES = (64, 128, 224)
CAMERAS = ("agentview", "wrist")
N_ENVS = (1, 4, 8)
_DRAWS = 3  # in a row; the first finds colder caches
_STEPS_BEFORE = 40  # random actions, so that the arm has left its first pose

VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, chunk_size=8": {"chunk_size": 8},
    "fast": {"renderer": "fast"},
    "fast, chunk_size=8": {"renderer": "fast", "chunk_size": 8},
    "no camera": {"cameras": ()},
}

# ------------------------------------------------------------------------- probes, each in a process of its own


def answer(measure: Callable[[], dict[str, float]]) -> None:
    """Answers each line on standard input with a round of figures; whatever else is printed is no answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for _ in sys.stdin:
        answers.write(json.dumps(measure()) + "\n")
        answers.flush()


def draw_frames(renderers: list[str]) -> None:
    """Answers each line on standard input with a round of frames: CPU milliseconds by task, size, camera, renderer."""
    import numpy as np

    from libero_gym.tasks import get_tasks, initial_states

    try:
        from libero_gym.compilation.compile import compile_task
        from libero_gym.rendering import render
        from libero_gym.simulation.simulator import Simulator
    except ImportError:  # before rooms were made, as in 15f2cf8
        from libero_gym.compile import compile_task  # type: ignore[import-not-found,no-redef]
        from libero_gym.simulator import Simulator  # type: ignore[import-not-found,no-redef]

        from libero_gym.rendering import render
    simulators = []
    for suite, task_id in TASKS:
        task = get_tasks(suite)[task_id]
        simulator = Simulator(compile_task(task))
        simulator.reset(initial_states(task)[0])
        for action in np.random.default_rng(0).uniform(-1, 1, (_STEPS_BEFORE, 7)):
            simulator.step(action)
        simulators.append((f"{suite}[{task_id}]", simulator))

    def measure() -> dict[str, float]:
        times = {}
        for name, simulator in simulators:
            for size in SIZES:
                for camera in CAMERAS:
                    for renderer in renderers:
                        spent = []
                        for _ in range(_DRAWS):
                            before = time.process_time()
                            render(simulator, (camera,), size, renderer=renderer)
                            spent.append((time.process_time() - before) * 1e3)
                        times[f"{name} {size} {camera} {renderer}"] = min(spent)
        return times

    answer(measure)


def draw_with_threads() -> None:
    """Answers each line on standard input with wall-clock milliseconds of a frame by size and number of threads."""
    from libero_gym.compilation.compile import compile_task
    from libero_gym.rendering import render
    from libero_gym.simulation.simulator import Simulator
    from libero_gym.tasks import get_tasks, initial_states

    task = get_tasks(TASKS[0][0])[TASKS[0][1]]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])

    def measure() -> dict[str, float]:
        times = {}
        for size in (*SIZES, 512):
            for n_threads in (1, 2):
                spent = []
                for _ in range(20):
                    before = time.perf_counter()
                    render(simulator, CAMERAS, size, renderer="fast", n_threads=n_threads)
                    spent.append((time.perf_counter() - before) * 1e3 / len(CAMERAS))
                times[f"{size}, {n_threads} thread{'s' * (n_threads > 1)}"] = min(spent)
        return times

    answer(measure)


def step_vector(n_envs: int, name: str) -> None:
    """Answers each line on standard input with control steps per second of a vector environment."""
    import env_throughput
    from measuring import milliseconds

    chunk_size, kwargs = 1, {}
    if name == "stock":
        env: Any = env_throughput.make_stock_vector(n_envs)
    else:
        kwargs = VARIANTS[name]
        chunk_size = int(kwargs.get("chunk_size", 1))
        env = env_throughput.make_vector(n_envs, **kwargs)
    import numpy as np

    rng, n_steps = np.random.default_rng(0), env_throughput.VECTOR_STEPS

    def measure() -> dict[str, float]:
        shape = (n_envs, chunk_size, 7) if chunk_size > 1 else (n_envs, 7)
        actions = rng.uniform(-1, 1, (n_steps, *shape))
        elapsed = milliseconds(lambda: [env.step(action) for action in actions])
        return {"steps_per_s": n_envs * chunk_size * n_steps / elapsed * 1e3}

    answer(measure)
    env.close()


# ------------------------------------------------------------------------------------------------------- the report


class Probe:
    """A process that does a round of work when asked.

    Args:
        tree: The checkout whose packages it imports.
        arguments: Command-line arguments after ``--probe``.
    """

    def __init__(self, tree: Path, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        command = [sys.executable, __file__, "--probe", *arguments]
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def round(self) -> dict[str, float]:
        """Figures of one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended without an answer.")
        figures: dict[str, float] = json.loads(line)
        return figures

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()


@contextlib.contextmanager
def probes(commands: dict[str, tuple[Path, tuple[str, ...]]]) -> Iterator[dict[str, Probe]]:
    """Probes by name, each of a checkout and arguments, that end afterwards."""
    started: dict[str, Probe] = {}
    try:
        for name, (tree, arguments) in commands.items():
            started[name] = Probe(tree, *arguments)
            started[name].round()  # warms up
        yield started
    finally:
        for probe in started.values():
            probe.close()


def measure_frames(tree: Path, earlier: Path | None, repeats: int) -> dict[str, Any]:
    """Least and median CPU milliseconds of a frame by task, size and camera, and mean over tasks of the least."""
    commands = {"": (tree, ("frames", "exact", "fast"))}
    if earlier is not None:
        commands["earlier "] = (earlier, ("frames", "fast"))
    rounds: dict[str, list[float]] = {}
    with probes(commands) as running:
        for _ in range(repeats):
            for prefix, probe in running.items():
                for key, value in probe.round().items():
                    *place, renderer = key.split()
                    rounds.setdefault(f"{' '.join(place)} {prefix}{renderer}", []).append(value)
    figures = {
        key: {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}
        for key, values in rounds.items()
    }
    means: dict[str, list[float]] = {}
    for key, figure in figures.items():
        means.setdefault(key.split(" ", 1)[1], []).append(figure["min"])
    return {"mean_of_min": {key: round(statistics.mean(values), 2) for key, values in means.items()}, "ms": figures}


def measure_vectors(tree: Path, n_envs: int, repeats: int) -> dict[str, Any]:
    """Control steps per second of each variant and of stock, and ratios to stock round by round."""
    from measuring import summary

    rates: dict[str, list[float]] = {}
    with probes({name: (tree, ("vector", str(n_envs), name)) for name in (*VARIANTS, "stock")}) as running:
        for _ in range(repeats):
            for name, probe in running.items():
                rates.setdefault(name, []).append(probe.round()["steps_per_s"])
    ratios = {
        name: summary([own / theirs for own, theirs in zip(rates[name], rates["stock"], strict=True)])
        for name in VARIANTS
    }
    return {name: summary(values) for name, values in rates.items()} | {"times_stock": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--envs", type=int, nargs="*", default=list(N_ENVS), help="sizes of vectors; none skips them")
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier commit, whose fast frames to draw, too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        kind, *rest = args.probe
        if kind == "frames":
            draw_frames(rest)
        elif kind == "threads":
            draw_with_threads()
        else:
            step_vector(int(rest[0]), rest[1])
        return

    import env_footprint
    from measuring import provenance, report, summary

    tree = Path(__file__).resolve().parent.parent
    results: dict[str, Any] = {"provenance": provenance()}
    results["frames"] = measure_frames(tree, args.earlier, args.repeats)
    with probes({"": (tree, ("threads",))}) as running:
        rounds = [running[""].round() for _ in range(args.repeats)]
    results["threads_wall_ms"] = {key: round(min(each[key] for each in rounds), 2) for key in rounds[0]}
    results["steps_per_s"] = {n: measure_vectors(tree, n, args.repeats) for n in args.envs}
    results["four_workers_mb"] = {
        name: round(env_footprint.run_probe("workers_ours", name)["mb"]) for name in ("exact", "fast")
    }
    starts = [env_footprint.run_probe("start_ours", "fast") for _ in range(args.repeats)]
    results["start_up"] = {key: summary([start[key] for start in starts]) for key in starts[0]}
    report(results, args.out)


if __name__ == "__main__":
    main()
