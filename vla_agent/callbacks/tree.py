"""Callbacks contain callbacks: what `learn` takes as a list, and all parts of a tree of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """What `learn` takes as its callback, as a list.

    Raises:
        ValueError: If an element is neither a callback nor a function.
    """
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [_as_callback(one) for one in given]


def parts(callbacks: Iterable[BaseCallback]) -> Iterator[BaseCallback]:
    """All callbacks in trees of them: SB3's lists hold ``callbacks``, its event callbacks one ``callback``."""
    for callback in callbacks:
        yield callback
        yield from parts(getattr(callback, "callbacks", []))
        if isinstance(child := getattr(callback, "callback", None), BaseCallback):
            yield from parts([child])


def _as_callback(callback: Any) -> BaseCallback:
    if isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, type) and issubclass(callback, BaseCallback):
        raise ValueError(f"callback={callback.__name__} is a class; give an instance, {callback.__name__}(...).")
    if isinstance(callback, type) or not callable(callback):
        raise ValueError(
            f"callback={callback!r}; expected a BaseCallback, a function of (locals, globals), or a list of them."
        )
    return ConvertCallback(callback)
