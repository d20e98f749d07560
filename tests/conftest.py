"""Shared fixtures: tasks are compiled once per test run, models are built once per file."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from libero_gym.env import LiberoEnv
from libero_gym.rendering import egl, osmesa
from libero_gym.rendering.renderer import DEBIAN_PACKAGES, available_backends
from libero_gym.tasks import Task, get_tasks

if TYPE_CHECKING:
    import torch as th

    from vla_agent.openvla import OpenVLA


# Ray starts its processes at niceness 15, behind the tests that run beside.
os.environ.setdefault("RAY_worker_niceness", "0")

_NO_OPENGL = f"no OpenGL library is installed (Debian: apt-get install {DEBIAN_PACKAGES})"


@functools.cache
def has_opengl() -> bool:
    """Whether a library that `renderer="exact"` draws with is installed, of those that ``$MUJOCO_GL`` allows."""
    for backend in available_backends():
        with contextlib.suppress(OSError):
            {"egl": egl, "osmesa": osmesa}[backend].load()
            return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `opengl` where no OpenGL library is installed."""
    if not has_opengl():
        for item in items:
            if item.get_closest_marker("opengl"):
                item.add_marker(pytest.mark.skip(reason=_NO_OPENGL))


@pytest.fixture(scope="session")
def spatial_task() -> Task:
    return get_tasks("libero_spatial")[0]


@pytest.fixture
def state_env() -> Iterator[LiberoEnv]:
    """LIBERO-Spatial task 0 without cameras."""
    env = LiberoEnv("libero_spatial", task_id=0, cameras=())
    yield env
    env.close()


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    """The tiny model with every bias, scale and head weight away from its special initial value."""
    from openvla_models import perturbed_tiny  # brings transformers, which takes seconds

    return perturbed_tiny()


@pytest.fixture(scope="module")
def batch(model: OpenVLA) -> dict[str, th.Tensor]:
    """Three prompts of different length with noise images and arbitrary actions."""
    from openvla_models import make_batch

    return make_batch(model)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenVLA, dict[str, th.Tensor]]:
    """A model of 8-step chunks from two cameras and the robot's state, and a batch for it."""
    from openvla_models import make_parallel

    return make_parallel(tmp_path_factory.mktemp("parallel"))
