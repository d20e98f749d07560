"""Compiles tasks before they are used, several at a time, and says so, because it takes seconds per task."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from libero_gym.bddl import read_text
from libero_gym.common import cache
from libero_gym.common.cores import available_cores
from libero_gym.common.interpreters import module_command, module_environment
from libero_gym.common.memory import available_memory
from libero_gym.common.numba_cache import is_writable
from libero_gym.compilation import placements
from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import models
from libero_gym.stock import own_modules
from libero_gym.tasks import Task

logger = logging.getLogger(__name__)

_Jobs = queue.SimpleQueue[dict[str, Any]]
# Bytes that a process that compiles takes at most: for a kitchen scene that is packed, measured.
_PROCESS_BYTES = 2.5e9


def compile_tasks(
    tasks: Sequence[Task],
    *,
    renderer: str | None = None,
    placement_seeds: Sequence[int] = (),
    progress: bool = True,
    max_processes: int | None = None,
) -> None:
    """Compile those of these tasks that the cache on disk does not have.

    Fresh interpreters do the work, so that the caller may fork later and needs no ``if __name__ == "__main__"``. They
    touch no OpenGL. If one fails, or nothing can be cached, nothing is raised: whoever uses the task compiles it then,
    or fails with the reason.

    Args:
        tasks: Tasks that are going to be used.
        renderer: Renderer whose models to prepare, too; None for none.
        placement_seeds: Seeds whose initial states to draw, too.
        progress: Whether to show a bar with a rate, or log one line (WARNING) if standard error is no terminal.
        max_processes: Largest number of processes; None for as many as cores and memory allow.
    """
    seeds = sorted(set(placement_seeds))
    waiting = [(task, _modules(task)) for task in tasks if not _is_ready(task, renderer, seeds)]
    # A process of its own cannot have what the program itself registers with LIBERO.
    missing = [(task, modules) for task, modules in waiting if modules is not None]
    if not missing or not _can_cache():
        return
    jobs: _Jobs = queue.SimpleQueue()
    for task, modules in missing:
        jobs.put({"task": _task_to_json(task), "renderer": renderer, "seeds": seeds, "modules": modules})
    n_processes = min(len(missing), max_processes or _processes_that_fit())
    if progress and not sys.stderr.isatty():
        logger.warning(
            "Compiling %d task%s in %d process%s: once, some 5 to 10 s each; kept in %s.",
            *(len(missing), "s" * (len(missing) > 1), n_processes, "es" * (n_processes > 1), cache.cache_dir()),
        )
    hidden = None if progress else True  # None: hidden where there is no terminal
    with tqdm(total=len(missing), desc="Compiling tasks", unit="task", disable=hidden, leave=False) as bar:
        for problem in _answers(jobs, len(missing), n_processes):
            if problem is not None:
                logger.warning("A task was not compiled in advance: %s", problem)
            bar.update()


def _answers(jobs: _Jobs, n_jobs: int, n_processes: int) -> Iterator[str | None]:
    """What went wrong with each job, None if nothing did, in the order in which they end."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    processes: list[subprocess.Popen[str]] = []
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_do_jobs, args=(jobs, answers, processes, stopped), daemon=True)
        for _ in range(n_processes)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(n_jobs):
            yield answers.get()
    finally:
        stopped.set()
        for process in list(processes):
            process.kill()
        for thread in threads:
            thread.join()


def _do_jobs(
    jobs: _Jobs,
    answers: queue.SimpleQueue[str | None],
    processes: list[subprocess.Popen[str]],
    stopped: threading.Event,
) -> None:
    """Let one process do jobs until none is left, and replace it if it ends, for instance for want of memory."""
    process = None
    while not (stopped.is_set() or jobs.empty()):
        try:
            job = jobs.get_nowait()
        except queue.Empty:  # another thread was faster
            break
        answer = json.dumps(f"{_label(job['task'])}: the process that compiled it ended.")
        try:
            if process is None or process.poll() is not None:
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                process = subprocess.Popen(_command(), env=module_environment(), **pipes)
                processes.append(process)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline() or answer
        except OSError as error:
            answer = json.dumps(f"{_label(job['task'])}: {error}")
        answers.put(json.loads(answer))
    if process is not None:
        with contextlib.suppress(OSError):
            process.communicate()  # closes its input, so that it leaves


def _command() -> list[str]:
    return module_command("libero_gym.first_use")


def _task_to_json(task: Task) -> dict[str, Any]:
    """The arguments of `Task` that compiling needs, all but the initial states."""
    values = {name: value for name, value in vars(task).items() if name != "init_states"}
    return values | {"bddl_file": str(task.bddl_file)}


def _modules(task: Task) -> list[str] | None:
    """Modules to import before a task is compiled; None if that does not help."""
    try:
        return own_modules(read_text(task.bddl_file))
    except (OSError, ValueError):
        return None


def _label(task: dict[str, Any]) -> str:
    return f"{task['suite']} {task['task_id']}"


def _is_ready(task: Task, renderer: str | None, seeds: Sequence[int]) -> bool:
    return models.is_prepared(task, renderer) and placements.are_drawn(task, seeds)


def _can_cache() -> bool:
    try:
        return cache.cache_limit_bytes() > 0 and is_writable(cache.cache_dir())
    except OSError:
        return False


def _processes_that_fit() -> int:
    """The number of processes that this process's cores and the free memory allow; at least one."""
    cores, memory = available_cores(), available_memory()
    if memory is not None:
        cores = min(cores, int(memory / _PROCESS_BYTES))
    return max(cores, 1)


def _serve() -> None:
    """Do the jobs on standard input, one JSON object a line, and answer each with a line: null or what went wrong."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    logging.disable(logging.WARNING)  # the parent has said that this takes time
    for line in sys.stdin:
        job = json.loads(line)
        problem = None
        try:
            for name in job["modules"]:
                importlib.import_module(name)
            task = Task(**job["task"])
            compiled = compile_task(task)
            if job["renderer"] is not None:
                models.prepare(compiled, job["renderer"])
            placements.prepare(task, job["seeds"])
        except Exception as error:
            problem = f"{_label(job['task'])}: {type(error).__name__}: {error}"
        answers.write(json.dumps(problem) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
