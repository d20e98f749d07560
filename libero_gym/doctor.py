"""``python -m libero_gym.doctor`` says what works on this machine, what does not, and what cures it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libero_gym import benchmark
from libero_gym.common import cache
from libero_gym.common.interpreters import module_environment
from libero_gym.common.version import BENCHMARK, installed_version
from libero_gym.equivalence.versions import DISTRIBUTION, UnsupportedMujocoError, advice, fidelity

# The versions that continuous integration runs; see constraints.txt.
TESTED = {
    **BENCHMARK,
    "gymnasium": "1.4.0",
    "numpy": "2.4.6",
    "numba": "0.68.1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "stable-baselines3": "2.9.2",
}
# How the names of OpenGL renderers begin that draw on the CPU.
_SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "swr ")
# Seconds for a control step with a 128-pixel frame, which takes a few dozen ms on a GPU or with renderer="fast".
_SLOW_STEP, _HOPELESS_STEP = 0.5, 5.0
_TRY_TIMEOUT = 300.0  # s, for code that is tried in a process of its own
# This code prints the name of what draws.
_GL_CODE = """
from libero_gym.rendering.renderer import make_gl_context
context = make_gl_context({backend!r})
with context.current():
    print(context.renderer())
context.free()
"""
_EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_ANY_DEVICE_CODE = f"import os\ndel os.environ[{_EGL_DEVICE!r}]\n{_GL_CODE.format(backend='egl')}"
_FRAME_CODE = """
import json, statistics, time
import gymnasium as gym
start = time.perf_counter()
env = gym.make("LIBERO-Spatial-v0", task_id=0, image_size=128, renderer={renderer!r})
obs, _ = env.reset(seed=0)
first, steps = time.perf_counter() - start, []
while len(steps) < 3 and sum(steps) < 20:
    start = time.perf_counter()
    obs, *_ = env.step(env.action_space.sample())
    steps.append(time.perf_counter() - start)
print(json.dumps([first, statistics.median(steps), float(obs["image"].std())]))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "ok", "note" or "fail".
        what: What was checked.
        found: What the check found.
        cure: What the user can do about it; empty if nothing is needed.
    """

    level: str
    what: str
    found: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"[{self.level:>4}] {self.what:<22} {self.found}"
        return f"{line}\n{'':>7}-> {self.cure}" if self.cure else line


def check_versions() -> list[Finding]:
    """Compare installed versions with the tested ones."""
    findings = []
    for package, tested in TESTED.items():
        installed = installed_version(package)
        if installed is None:
            findings.append(Finding("fail", package, "not installed", f"pip install {package}=={tested}"))
            continue
        if package == DISTRIBUTION:
            findings.append(judge_mujoco(installed))
        elif installed.split("+")[0] == tested:
            findings.append(Finding("ok", package, installed))
        elif package in BENCHMARK:
            cure = f"another version is another benchmark: pip install {package}=={tested}"
            findings.append(Finding("fail", package, f"{installed}, results hold for {tested}", cure))
        else:
            findings.append(Finding("note", package, f"{installed}, tested with {tested}"))
    return findings


def judge_mujoco(installed: str) -> Finding:
    """Judge an installed version of MuJoCo: how exact its results are."""
    found = f"{installed}, {fidelity(installed).split(' (')[0]}"
    try:
        sentence = advice(installed)
    except UnsupportedMujocoError as error:
        return Finding("fail", DISTRIBUTION, f"{installed}, too old", str(error))
    return Finding("ok", DISTRIBUTION, found) if sentence is None else Finding("note", DISTRIBUTION, found, sentence)


def check_benchmark() -> list[Finding]:
    """Check that ``import libero`` gives the benchmark package, and no configuration replaces its files."""
    try:
        benchmark.check_installed()
    except benchmark.BenchmarkError as error:
        return [Finding("fail", "benchmark package", str(error))]
    findings = []
    found_instead = benchmark.shadow()
    if found_instead is not None:
        found = f"Python finds `libero` at {found_instead}; tasks are compiled by the benchmark's at {benchmark.root()}"
        findings.append(Finding("note", "another LIBERO", found))
    changed = benchmark.changed_files()
    if changed:
        found = f"{len(changed)} files are not those of {benchmark.DISTRIBUTION}, first {changed[0]}"
        findings.append(Finding("fail", "benchmark package", found, benchmark.REINSTALL))
    ignored = benchmark.ignored_configuration()
    if ignored is not None:
        findings.append(Finding("note", "LIBERO configuration", ignored))
    return findings or [Finding("ok", "benchmark package", str(benchmark.root()))]


def check_assets() -> list[Finding]:
    """Check that the task definitions and initial states of every suite are there."""
    from libero_gym.tasks import SUITES, get_tasks

    missing, count = [], 0
    for suite in SUITES.values():
        for task in get_tasks(suite.name):
            count += 1
            files = [path for path in (task.bddl_file, task.init_states) if isinstance(path, Path)]
            missing += [str(path) for path in files if not path.is_file()]
    if missing:
        found = f"{len(missing)} files missing, first {missing[0]}"
        return [Finding("fail", "assets", found, benchmark.REINSTALL)]
    return [Finding("ok", "assets", f"{len(SUITES)} suites, {count} tasks with initial states")]


def check_cache() -> list[Finding]:
    """Check that compiled tasks can be kept on disk."""
    from libero_gym.common.numba_cache import is_writable

    cure = "set LIBERO_GYM_CACHE to a folder that can be written; until then every process compiles its tasks"
    limit = cache.cache_limit_bytes()
    if not limit:
        return [Finding("note", "cache", "turned off by LIBERO_GYM_CACHE_GB")]
    try:
        folder = cache.cache_dir()
    except OSError as error:
        return [Finding("note", "cache", str(error), cure)]
    if not is_writable(folder):
        return [Finding("note", "cache", f"{folder} cannot be written", cure)]
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    return [Finding("ok", "cache", f"{folder}, {size / 1e9:.1f} of at most {limit / 1e9:g} GB")]


def check_fast() -> list[Finding]:
    """Compile, step and draw one task without OpenGL. Training needs no more, so this must work."""
    printed, problem = _try_code(_FRAME_CODE.format(renderer="fast"), {})
    if problem is not None:
        return [Finding("fail", _named("fast"), f"does not work: {problem}")]
    first, step, contrast = json.loads(printed.splitlines()[-1])
    return [judge_frame(first, step, contrast, "fast")]


def check_exact() -> list[Finding]:
    """Try each OpenGL back end in a process of its own, because one that fails can end its process; then draw a frame.

    Without OpenGL a machine lacks stock's pixels and nothing else, so that is a note.
    """
    findings, working = [], []
    for backend in ("egl", "osmesa"):
        environment = {"PYOPENGL_PLATFORM": backend, "MUJOCO_GL": backend}
        name, problem = _try_code(_GL_CODE.format(backend=backend), environment)
        if problem is not None:
            findings.append(Finding("note", f"OpenGL by {backend}", f"does not work: {problem}"))
        else:
            working.append(backend)
            findings.append(judge_renderer(backend, name, has_gpu()))
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    device = os.environ.get(_EGL_DEVICE)
    if not working and device is not None and _try_code(_ANY_DEVICE_CODE, {"PYOPENGL_PLATFORM": "egl"})[1] is None:
        found = f"{_EGL_DEVICE}={device} does not work here, and EGL works without it"
        return [*findings, Finding("note", _named("exact"), found, f"unset {_EGL_DEVICE}")]
    if not working:
        cure = f"{_install_opengl()}; until then, {_named('fast')}"
        return [*findings, Finding("note", _named("exact"), "needs OpenGL, which does not work here", cure)]
    if chosen in ("egl", "osmesa") and chosen not in working:
        cure = f"set MUJOCO_GL={working[0]}, or leave it unset"
        return [*findings, Finding("note", _named("exact"), f"MUJOCO_GL={chosen} does not work here", cure)]
    printed, problem = _try_code(_FRAME_CODE.format(renderer="exact"), {})
    if problem is not None:
        return [*findings, Finding("fail", _named("exact"), f"does not work: {problem}")]
    return [*findings, judge_frame(*json.loads(printed.splitlines()[-1]))]


def judge_renderer(backend: str, renderer: str, gpu: bool) -> Finding:
    """Judge whether an OpenGL renderer suits a machine with or without a GPU.

    Args:
        backend: "egl" or "osmesa".
        renderer: The renderer's own name.
        gpu: Whether the machine has a GPU.
    """
    software = renderer.lower().startswith(_SOFTWARE_RENDERERS)
    if not software:
        return Finding("ok", f"OpenGL by {backend}", f"works, on {renderer}")
    if gpu and backend == "egl":
        cure = (
            "OpenGL draws on the CPU although there is a GPU: install the driver's EGL (libnvidia-gl; in a container "
            'NVIDIA_DRIVER_CAPABILITIES=all). Until then, renderer="fast"'
        )
        return Finding("note", f"OpenGL by {backend}", f"works, on the CPU ({renderer})", cure)
    return Finding("ok", f"OpenGL by {backend}", f'works, on the CPU ({renderer}); renderer="fast" saves most of it')


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device, without loading CUDA."""
    return any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))


def check_devices() -> list[Finding]:
    """List CPU cores and CUDA devices."""
    findings = [
        Finding("ok", "CPU", f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    ]
    try:
        import torch
    except ImportError:
        return [*findings, Finding("note", "torch", "not installed: environments work, vla_agent does not")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*findings, Finding("ok" if names else "note", "CUDA", ", ".join(names) or "no device: the CPU trains")]


def judge_frame(first: float, step: float, contrast: float, renderer: str = "exact") -> Finding:
    """Judge one environment's speed and frames.

    Args:
        first: Seconds until the first frame, with compiling.
        step: Seconds for a control step with a frame.
        contrast: Standard deviation of the frame's pixels.
        renderer: Renderer of the frame.
    """
    found = f"128x128, first after {first:.1f} s, a step with a frame in {step * 1e3:.0f} ms"
    exact = renderer == "exact"
    if contrast < 1:
        return Finding("fail", _named(renderer), "the frame is blank", _install_opengl() if exact else "")
    if step <= _SLOW_STEP:
        return Finding("ok", _named(renderer), found)
    faster = f"{_named('fast')}, smaller images, or a GPU that OpenGL uses (see above)" if exact else "smaller images"
    hopeless = step > _HOPELESS_STEP and not exact
    return Finding("fail" if hopeless else "note", _named(renderer), found, f"too slow to train: {faster}")


def _named(renderer: str) -> str:
    return f'renderer="{renderer}"'


def _try_code(code: str, environment: dict[str, str]) -> tuple[str, str | None]:
    """Run code in a process of its own; return what it printed, and what went wrong or None."""
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=module_environment(**environment),
            capture_output=True,
            text=True,
            timeout=_TRY_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_TRY_TIMEOUT:g} s"
    if result.returncode == 0:
        return result.stdout.strip(), None
    last = (result.stderr.strip().splitlines() or [f"it ended with status {result.returncode} and said nothing"])[-1]
    return "", last[:500]


def _install_opengl() -> str:
    from libero_gym.rendering.renderer import DEBIAN_PACKAGES

    return f"apt-get install {DEBIAN_PACKAGES}"


def diagnose() -> list[Finding]:
    """Run all checks; a check that raises gives a finding, too."""
    findings: list[Finding] = []
    checks: list[Callable[[], list[Finding]]] = [
        check_versions,
        check_devices,
        check_benchmark,
        check_assets,
        check_cache,
        check_fast,
        check_exact,
    ]
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding("fail", check.__name__.removeprefix("check_"), f"{type(error).__name__}: {error}"))
    return findings


def main() -> int:
    """Print the report, and return the exit status: 1 if a check fails, else 0."""
    findings = diagnose()
    failed = sum(finding.level == "fail" for finding in findings)
    verdict = "Everything needed works." if not failed else f"{failed} of {len(findings)} checks failed."
    sys.stdout.write("\n".join([*map(str, findings), verdict, ""]))
    return 1 if failed else 0


def command(arguments: Sequence[str] = ()) -> None:
    """``libero-vla doctor``.

    Raises:
        SystemExit: With status 1 if a check fails, 2 if there is an argument, because the command takes none.
    """
    if list(arguments) in (["-h"], ["--help"]):
        sys.stdout.write(f"usage: libero-vla doctor\n\n{__doc__}\n")
        return
    if arguments:
        sys.stderr.write(f"Error: doctor takes no argument, got {' '.join(arguments)}.\n")
        raise SystemExit(2)
    raise SystemExit(main())


if __name__ == "__main__":
    sys.exit(main())
