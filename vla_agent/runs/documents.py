"""Checks the shape of JSON documents against forms, which list keys and types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CALLED: dict[Any, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    type(None): "null",
}


def fault(value: Any, form: Any, where: str = "") -> str | None:
    """What is wrong with a value, such as "counters.n_iterations is 'x'; expected a whole number"; None if it fits.

    Args:
        value: The value.
        form: A type (``float`` takes any finite number, ``int`` no booleans, ``object`` anything), a ``range`` of
            whole numbers, a tuple of forms of which one must fit, a list of the one form of all elements, or a dict of
            the forms of the keys that must be there; others may be.
        where: Name of the value in the message.
    """
    if isinstance(form, dict):
        return _fault_of_object(value, form, where)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _wrong(value, list, where)
        return next((wrong for i, item in enumerate(value) if (wrong := fault(item, form[0], f"{where}[{i}]"))), None)
    if isinstance(form, tuple):
        faults = [fault(value, part, where) for part in form]
        if None in faults:
            return None
        deeper = [wrong for wrong, part in zip(faults, form, strict=True) if _is_like(value, part)]
        return deeper[0] if deeper else _wrong(value, form, where)
    return None if _fits(value, form) else _wrong(value, form, where)


def _fault_of_object(value: Any, form: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(value, dict, where)
    for key, part in form.items():
        name = f"{where}.{key}" if where else key
        if key not in value:
            return f"{name} is missing"
        if wrong := fault(value[key], part, name):
            return wrong
    return None


def _is_like(value: Any, form: Any) -> bool:
    """Whether the value is of the form's kind, so that what is wrong lies deeper."""
    return isinstance(form, (dict, list)) and isinstance(value, type(form))


def _fits(value: Any, form: Any) -> bool:
    if form is object:
        return True
    if isinstance(value, bool):
        return form is bool
    if form is float:
        try:
            return isinstance(value, (int, float)) and math.isfinite(value)
        except OverflowError:  # an integer that no float can hold
            return False
    if isinstance(form, range):
        return isinstance(value, int) and value in form
    return isinstance(value, form)


def _wrong(value: Any, form: Any, where: str) -> str:
    text = repr(value)
    return f"{where or 'the document'} is {text if len(text) < 60 else text[:56] + ' ...'}; expected {_called(form)}"


def _called(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(_called(part) for part in form)
    if isinstance(form, range):
        return f"a whole number from {form.start} to {form.stop - 1}"
    return _CALLED[type(form) if isinstance(form, (dict, list)) else form]
