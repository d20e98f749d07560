"""The packages work where a machine's owner, its environment variables or another LIBERO are in their way."""

from __future__ import annotations

import configparser
import os
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import mujoco
import numba
import pytest
from paths import ROOT

import libero_gym
import vla_agent
from libero_gym import doctor, stock
from libero_gym.common import cache, numba_cache
from libero_gym.common.version import package_versions
from libero_gym.stock import BenchmarkError, task_files
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
# As PyOpenGL and ctypes fail where a library is missing.
WITHOUT_OPENGL = """
import ctypes, sys
class WithoutLibraries(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if "EGL" in str(name) or "OSMesa" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = WithoutLibraries
class WithoutOpenGL:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "OpenGL":
            raise AttributeError("'NoneType' object has no attribute 'glGetError'")
sys.meta_path.insert(0, WithoutOpenGL())
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


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_environments_without_cameras_need_no_opengl(backend: str, tmp_path: Path) -> None:
    code = WITHOUT_OPENGL + (
        "import os, gymnasium as gym\n"
        "from libero_gym.stock import import_stock\n"
        "from libero_gym.rendering import RenderingError\n"
        "import_stock()\n"
        "env = gym.make('LIBERO-Spatial-v0', cameras=(), task_id=0)\n"
        "env.reset(seed=0)\n"
        "print(os.environ['MUJOCO_GL'], os.environ.get('PYOPENGL_PLATFORM'))\n"
        "try:\n"
        "    gym.make('LIBERO-Spatial-v0', task_id=0).reset(seed=0)\n"
        "except RenderingError as error:\n"
        "    print(error)"
    )
    printed = run(code, tmp_path, ("PYOPENGL_PLATFORM",), MUJOCO_GL=backend).splitlines()
    assert printed[0] == f"{backend} None"
    assert printed[1].startswith(f"No OpenGL back end can render here ({backend}: ")


def other_libero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install LIBERO's own distribution, as openpi's environments have it."""
    (folder / "libero-0.1.0.dist-info").mkdir()
    (folder / "libero-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: libero\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(folder)
    stock.check_installed.cache_clear()
    get_tasks.cache_clear()


def test_another_libero_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_libero(tmp_path, monkeypatch)
    way_out = r"virtual environment of its own, or: pip uninstall -y libero && pip install --force-reinstall"
    with pytest.raises(BenchmarkError, match=way_out):
        gym.make("LIBERO-Spatial-v0", cameras=())
    (finding,) = doctor.check_benchmark()
    assert finding.level == "fail"
    assert "Another LIBERO is installed here (libero)" in finding.found


def test_a_checkout_that_shadows_the_benchmark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "libero", raising=False)
    stock.check_installed.cache_clear()
    with pytest.raises(BenchmarkError, match=r"Python finds `libero` at .*off PYTHONPATH"):
        stock.check_installed()


def test_a_file_that_was_overwritten_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stock.changed_files(("libero/__init__.py",)) == []
    digest = "sha256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # of "hello"

    class Installed:
        def read_text(self, name: str) -> str:
            return "".join(f"libero/{name}.py,{digest},5\n" for name in ("same", "other", "missing"))

        def locate_file(self, name: str) -> Path:
            return tmp_path / Path(name).name

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    (tmp_path / "same.py").write_text("hello")
    (tmp_path / "other.py").write_text("hullo")
    assert stock.changed_files() == [tmp_path / "other.py", tmp_path / "missing.py"]


def test_a_configuration_of_libero_does_not_move_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = task_files("libero_spatial")
    (tmp_path / "config.yaml").write_text(f"bddl_files: {tmp_path}/mybddl\nassets: {tmp_path}/assets\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"LIBERO_CONFIG_PATH=.*moves LIBERO's files.*is ignored.*unset"):
        assert task_files("libero_spatial") == expected
    from libero.libero import get_libero_path

    assert get_libero_path("assets") == f"{tmp_path}/assets"
    with stock.pinned():
        assert not get_libero_path("assets").startswith(str(tmp_path))
    (finding,) = doctor.check_benchmark()
    assert (finding.level, "LIBERO_CONFIG_PATH" in finding.found) == ("note", True)


def test_a_configuration_with_the_packages_own_paths_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(f"bddl_files: {stock.root()}/./bddl_files\ndatasets: /data\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    assert stock.ignored_configuration() is None


def test_doctor_starts_without_mujoco(tmp_path: Path) -> None:
    assert run("import sys, libero_gym.doctor\nprint('mujoco' in sys.modules)", tmp_path) == "False\n"


def test_doctor_judges_the_time_of_a_frame_and_names_the_fast_renderer() -> None:
    assert doctor.judge_frame(10.0, 0.03, 50.0).level == "ok"
    slow, hopeless = doctor.judge_frame(10.0, 0.8, 50.0), doctor.judge_frame(40.0, 17.0, 50.0)
    assert (slow.level, hopeless.level) == ("note", "fail")
    assert 'renderer="fast"' in slow.cure
    assert doctor.judge_frame(1.0, 0.01, 0.0).found == "the frame is blank"


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
