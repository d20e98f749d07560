"""The dictionary that computes its values: a real one to whoever reads it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from libero_gym.stock_api.observations import Observation

READERS: dict[str, Callable[[Observation], Any]] = {
    "key": lambda o: o["b"],
    "get": lambda o: o.get("b"),
    "pop": lambda o: o.pop("b"),
    "popitem": lambda o: o.popitem()[1],
    "values": lambda o: list(o.values())[1],
    "items": lambda o: dict(o.items())["b"],
    "dict": lambda o: dict(o)["b"],
    "stars": lambda o: {**o}["b"],
    "call": lambda o: (lambda a, b: b)(**o),
    "or": lambda o: (o | {"c": 3})["b"],
    "or from the left": lambda o: ({"c": 3} | o)["b"],
    "or in place": lambda o: _joined(o, {"c": 3})["b"],
    "or in place from the left": lambda o: _joined({"c": 3}, o)["b"],
    "update": lambda o: _updated({}, o)["b"],
    "copy": lambda o: o.copy()["b"],
    "copy.copy": lambda o: copy.copy(o)["b"],
    "deepcopy": lambda o: copy.deepcopy(o)["b"],
    "pickle": lambda o: pickle.loads(pickle.dumps(o))["b"],
    "json": lambda o: json.loads(json.dumps(dict(o)))["b"],
    "setdefault": lambda o: o.setdefault("b", 9),
}


def _updated(target: dict[str, Any], other: Any) -> dict[str, Any]:
    target.update(other)
    return target


def _joined(target: dict[str, Any], other: Any) -> dict[str, Any]:
    target |= other
    return target


def _observation(calls: list[str]) -> Observation:
    def value(name: str, number: int) -> Callable[[], int]:
        return lambda: calls.append(name) or number  # type: ignore[func-returns-value]

    return Observation({"a": value("a", 1), "b": value("b", 2)})


@pytest.mark.parametrize("reader", READERS)
def test_every_way_of_reading_gives_the_value(reader: str) -> None:
    assert READERS[reader](_observation([])) == 2


def test_a_value_is_computed_once_and_only_if_it_is_read() -> None:
    calls: list[str] = []
    observation = _observation(calls)
    assert list(observation) == ["a", "b"]
    assert len(observation) == 2
    assert "b" in observation
    assert calls == []
    assert observation["b"] == observation["b"] == 2
    assert calls == ["b"]
    assert isinstance(observation, dict)
    assert observation == {"a": 1, "b": 2}
    assert repr(observation) == "{'a': 1, 'b': 2}"
    assert calls == ["b", "a"]


def test_what_is_written_replaces_what_would_be_computed() -> None:
    calls: list[str] = []
    observation = _observation(calls)
    observation["a"] = 7
    observation.update({"b": 8}, c=9)
    del observation["c"]
    assert dict(observation) == {"a": 7, "b": 8}
    assert calls == []
    assert observation.get("d", 5) == 5
    with pytest.raises(KeyError):
        observation["d"]
    assert observation.pop("d", 6) == 6


def test_what_is_joined_in_place_replaces_what_would_be_computed() -> None:
    calls: list[str] = []
    observation = _observation(calls)
    observation |= {"a": 6}
    assert isinstance(observation, Observation)
    assert calls == []
    assert dict(observation) == {"a": 6, "b": 2}


def test_values_may_be_arrays() -> None:
    observation = Observation({"image": lambda: np.zeros((2, 2, 3), dtype=np.uint8)})
    assert pickle.loads(pickle.dumps(observation))["image"].shape == (2, 2, 3)
