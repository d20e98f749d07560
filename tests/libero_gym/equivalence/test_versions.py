"""What is known of MuJoCo's versions, and what their results are called."""

from __future__ import annotations

import pytest

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.versions import (
    EXACT,
    UnsupportedMujocoError,
    advice,
    fidelity,
    parse,
    refuse_to_mix,
    with_fidelity,
)


@pytest.mark.parametrize(
    ("version", "number"),
    [("3.3.2", (3, 3, 2)), ("3.17.0", (3, 17, 0)), ("4.1.0.dev3", (4, 1, 0)), ("3.8.1+local.7", (3, 8, 1))],
)
def test_versions_are_numbers(version: str, number: tuple[int, ...]) -> None:
    assert parse(version) == number


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("3.3.2", "exact"),
        ("3.3.3", "equivalent (3.3.3)"),
        ("4.0.1", "equivalent (4.0.1)"),
        ("4.1.0", "unmeasured (4.1.0)"),
        ("3.3.1", "unmeasured (3.3.1)"),
    ],
)
def test_results_are_named_by_what_is_known(version: str, name: str) -> None:
    assert fidelity(version) == name


def test_the_installed_version_is_the_one_that_runs() -> None:
    assert fidelity() == fidelity(mujoco.__version__)


def test_each_version_gets_one_sentence_of_advice() -> None:
    assert advice(EXACT) is None
    assert "repaired to be equivalent to LIBERO's 3.3.2, and is not exact" in str(advice("3.8.1"))
    assert "A function of this process's MuJoCo is replaced" in str(advice("3.8.1"))
    assert "is replaced" not in str(advice("3.3.7"))  # which halves depths by itself
    assert "newer than 4.0, the newest" in str(advice("4.1.0"))
    with pytest.raises(UnsupportedMujocoError, match=r"MuJoCo 3\.2\.7 is older than 3\.3\.2"):
        advice("3.2.7")


def test_settings_of_before_are_exact() -> None:
    assert with_fidelity({"suite": "libero_goal"}) == {"mujoco": "exact", "suite": "libero_goal"}
    assert with_fidelity({"mujoco": "equivalent (4.0.0)"}) == {"mujoco": "equivalent (4.0.0)"}


def test_unlike_things_are_not_mixed() -> None:
    refuse_to_mix("exact", "exact")
    with pytest.raises(ValueError, match=r"These cells are .* one exact and one equivalent \(3\.8\.1\)"):
        refuse_to_mix("exact", "equivalent (3.8.1)", "cells")
