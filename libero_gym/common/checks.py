"""Checks of what a caller gives: each returns the value in its proper type, or raises one sentence that says what came.

Imports nothing slow, so every module of both packages can use it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """The value as an int. Booleans, floats (also ``2.0``) and strings are refused.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        minimum: Smallest value that is allowed.
        maximum: Largest value that is allowed.

    Raises:
        ValueError: If the value is no whole number, or out of range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name}={value!r}; expected a whole number{_range(minimum, maximum)}.")
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        raise ValueError(f"{name}={value!r} is out of range; expected a whole number{_range(minimum, maximum)}.")
    return int(value)


def real_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value as a float. Booleans, strings, NaN and infinity are refused.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        minimum: Smallest value that is allowed.
        maximum: Largest value that is allowed.
        above: Lower bound that is itself not allowed.
        below: Upper bound that is itself not allowed, beside ``minimum``.

    Raises:
        ValueError: If the value is no finite number, or out of range.
    """
    wanted = "a number" + _range(minimum, maximum)
    if above is not None:
        wanted = f"a number above {_digits(above)}" + ("" if maximum is None else f" and of at most {_digits(maximum)}")
    if minimum is not None and below is not None:
        wanted = f"a number of {_digits(minimum)} to below {_digits(below)}"
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    try:
        is_finite = is_number and math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        raise ValueError(f"{name} is a number of {len(str(value))} digits; expected {wanted}.") from None
    if not is_finite:
        raise ValueError(f"{name}={value!r}; expected {wanted}.")
    too_low = (minimum is not None and value < minimum) or (above is not None and value <= above)
    too_high = (maximum is not None and value > maximum) or (below is not None and value >= below)
    if too_low or too_high:
        raise ValueError(f"{name}={value!r} is out of range; expected {wanted}.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """The value as a bool. Anything else is refused, also ``"no"`` and 1.

    Raises:
        ValueError: If the value is no bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r}; expected True or False.")
    return bool(value)


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """The value itself, which has to be one of the choices.

    Raises:
        ValueError: If the value is not among the choices; the message lists them and offers the nearest.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"Unknown {name} {value!r}.{did_you_mean(str(value), choices)} Choices: {listed}.")
    return value


def sequence(name: str, value: Any) -> list[Any]:
    """The value's elements. A single number, a string, a dict and None are refused.

    Raises:
        ValueError: If the value is one of these.
    """
    single = isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable)
    if single or getattr(value, "ndim", 1) == 0:  # NumPy's and torch's scalars have __iter__
        raise ValueError(f"{name}={value!r}; expected a sequence, such as {name}=({_example(value)},).")
    return list(value)


def as_path(name: str, value: Any) -> Path:
    """The value as a path; text is taken for one.

    Raises:
        TypeError: If the value is neither text nor a path.
    """
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name}={value!r:.80}; expected a path, as a str or Path.")
    return Path(value)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for a word close to one of the choices, else an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _example(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int)) else "0"


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {_digits(minimum)} to {_digits(maximum)}"
    if minimum is not None:
        return f" of at least {_digits(minimum)}"
    return "" if maximum is None else f" of at most {_digits(maximum)}"


def _digits(bound: float) -> str:
    """All digits of a whole number: 4294967295 is a bound, 4.29497e+09 is none."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
