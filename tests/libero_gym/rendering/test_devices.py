"""Workers are spread over GPUs by what EGL says about them, not by how CUDA happens to count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from workers import worker_pids

from libero_gym.rendering import devices
from libero_gym.rendering.devices import EglDevice, egl_devices, per_worker, spread, visible_gpus
from libero_gym.vector.vector import LiberoVectorEnv

# As EGL might list a machine with four GPUs that CUDA counts the other way round, and Mesa's software renderer.
FOUR_GPUS = [EglDevice(index, cuda_device=3 - index, uuid=f"GPU-{index}a{index}b") for index in range(4)]
FOUR_GPUS.append(EglDevice(4, software=True))


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "egl_devices", lambda: tuple(FOUR_GPUS))
    for name in ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
    devices._warn_of_unknown.cache_clear()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [3, 2, 1, 0]),
        ("0", [3]),
        ("2,0", [1, 3]),
        (" 1 , 2 ", [2, 1]),
        ("GPU-2a2b,0", [2, 3]),
        ("GPU-1", [1]),  # CUDA takes abbreviations
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", [2]),  # CUDA stops at the first that it does not know
    ],
)
def test_cuda_visible_devices_is_translated_to_egl(visible: str | None, expected: list[int]) -> None:
    assert visible_gpus(FOUR_GPUS, visible) == expected


def test_an_unknown_uuid_means_all_gpus_and_warns_once(four_gpus: None, recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(3):
        assert visible_gpus(FOUR_GPUS, "MIG-123,0") == [3, 2, 1, 0]
    assert [str(warning.message) for warning in recwarn] == [
        "CUDA_VISIBLE_DEVICES names 'MIG-123', which EGL does not know, so environments render on all GPUs. "
        "Pass render_device (EGL indices) to choose."
    ]


def test_gpus_that_cannot_be_opened_or_are_listed_twice_are_left_out() -> None:
    listed = [
        EglDevice(0, cuda_device=0, usable=False),
        EglDevice(1, cuda_device=1),
        EglDevice(2),  # the same one, by another driver
        EglDevice(3, software=True),
    ]
    assert visible_gpus(listed, None) == [1]
    assert visible_gpus(listed, "0") == []
    assert visible_gpus(listed[2:], "0") == [2]  # not CUDA's
    assert visible_gpus(listed[3:], None) == []


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n_envs", [1, 2, 5, 8, 33])
def test_environments_per_gpu_differ_by_at_most_one(n_envs: int, n_gpus: int) -> None:
    gpus = list(range(10, 10 + n_gpus))
    counts = Counter(spread([1] * n_envs, gpus))
    per_gpu = [counts[gpu] for gpu in gpus]
    assert sum(per_gpu) == n_envs
    assert max(per_gpu) - min(per_gpu) <= 1


def test_workers_weigh_as_many_environments_as_they_have() -> None:
    assert spread([1, 1, 4, 2], [7, 9]) == [9, 9, 7, 9]
    assert spread([2, 1], []) == [None, None]


def test_an_index_or_one_per_worker_can_be_given() -> None:
    assert per_worker(2, [1, 1], [0]) == (2, 2)
    assert per_worker([5, None], [1, 1], [0]) == (5, None)
    for bad in (-1, "0", [0], [0, 1, 2], [0, "1"], 1.5, True):
        with pytest.raises(ValueError, match="expected an EGL device index, or one for each of the 2 worker processes"):
            per_worker(bad, [1, 1], [0])  # type: ignore[arg-type]


def test_every_worker_is_handed_its_device(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,3")
    env = LiberoVectorEnv(6, suite="libero_spatial", task_id=0, n_workers=4)
    # Shares of 2, 1, 1 and 2 environments; EGL's 3, 2 and 0 are CUDA's 0, 1 and 3.
    assert env.render_devices == (3, 0, 0, 2)
    assert env.call("render_device") == (3, 3, 0, 0, 2, 2)
    env.close()


def test_as_many_workers_draw_on_each_gpu(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    env = LiberoVectorEnv(8, suite="libero_spatial", task_id=0)
    assert Counter(env.call("render_device")) == {0: 2, 1: 2, 2: 2, 3: 2}
    env.close()


def test_what_the_user_chose_is_kept(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, n_workers=2, render_device=[1, 0])
    assert env.call("render_device") == (1, 0)
    env.close()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert devices.default_gpus() == []


@pytest.mark.opengl
def test_a_new_worker_gets_the_device_of_the_old_one(four_gpus: None) -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, n_workers=2, render_device=[None, 0], restart=True)
    os.kill(worker_pids(env)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="Worker 0 died"):
        env.reset(seed=0)
    assert env.call("render_device") == (None, 0)
    env.close()


def test_nothing_drawn_asks_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("asked EGL")

    monkeypatch.setattr(devices, "egl_devices", fail)
    env = LiberoVectorEnv(1, suite="libero_spatial", task_id=0, cameras=())
    assert env.render_devices == (None,)
    env.close()


def test_the_query_lists_this_machines_devices_and_loads_no_gl_here() -> None:
    found = egl_devices()
    assert [device.index for device in found] == list(range(len(found)))
    code = (
        "from libero_gym.rendering.devices import egl_devices\n"
        "devices = egl_devices()\n"
        "assert devices is egl_devices()\n"
        "import sys\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'OpenGL']\n"
        "assert 'libEGL' not in open('/proc/self/maps').read()\n"
        "print(devices)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == repr(found)


def test_mesas_software_renderer_is_no_gpu() -> None:
    """Here Mesa's is the only EGL; on a machine with a GPU it must still not count as one."""
    software = [device for device in egl_devices() if device.software]
    if not software:
        pytest.skip("EGL lists no software renderer on this machine (Debian: libegl-mesa0)")
    assert all(device.usable and device.cuda_device is None for device in software)
    assert visible_gpus(software, None) == []


def test_a_query_that_fails_means_no_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    egl_devices.cache_clear()
    try:
        assert egl_devices() == ()
        assert "EGL could not be asked" in caplog.text
    finally:
        egl_devices.cache_clear()
