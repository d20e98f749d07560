"""What is known of MuJoCo's versions."""

from __future__ import annotations

import pytest

from libero_gym.equivalence.versions import parse


@pytest.mark.parametrize(
    ("version", "number"),
    [("3.3.2", (3, 3, 2)), ("3.17.0", (3, 17, 0)), ("4.1.0.dev3", (4, 1, 0)), ("3.8.1+local.7", (3, 8, 1))],
)
def test_versions_are_numbers(version: str, number: tuple[int, ...]) -> None:
    assert parse(version) == number
