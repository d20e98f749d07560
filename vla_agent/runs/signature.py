"""Arguments from the signature: what a constructor takes is what is kept, saved and given back."""

from __future__ import annotations

import inspect
import types
import typing
from abc import ABCMeta
from collections.abc import Callable
from typing import Any

from libero_gym.common.checks import did_you_mean

# Arguments that a run does not hold as such: it has the policy's class and ``policy_kwargs`` in places of their own,
# and environments, device and engine belong to the process that trains.
NOT_SAVED = ("policy", "policy_kwargs", "env", "device", "engine", "_init_setup_model")
# Where SB3 keeps an argument under another name than its own.
_ATTRIBUTES = {"stats_window_size": "_stats_window_size"}

_LINEAR_SCHEDULE = {"LinearSchedule": [float]}
_INFINITE = {"float": str}
# A bool passes for a whole number, as SB3 takes ``verbose=True``.
_FORMS: dict[Any, tuple[Any, ...]] = {
    float: (float,),
    int: (int, bool),
    bool: (bool,),
    str: (str,),
    type(None): (type(None),),
}


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """What a class is made with, by name; a constructor with ``**kwargs`` also takes what its parent's does."""
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {parameter.name: parameter for parameter in named} | found
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def saved_arguments(cls: type) -> list[str]:
    """The arguments that are saved with a run."""
    return [name for name in constructor_parameters(cls) if name not in NOT_SAVED]


def attribute_of(name: str) -> str:
    """The attribute that keeps an argument."""
    return _ATTRIBUTES.get(name, name)


def argument_forms(cls: type) -> dict[str, Any]:
    """The form of each saved argument in JSON, by its annotation, see `documents.fault`; ``object`` if it is open."""
    forms: dict[str, Any] = {}
    known: dict[str, Any] = {}  # SB3's alias of environments names a class that its base's module has and PPO's has not
    for owner in reversed(cls.__mro__):
        if "__init__" in vars(owner):
            known |= getattr(owner.__init__, "__globals__", {})  # type: ignore[misc]
            try:
                hints = typing.get_type_hints(owner.__init__, localns=known)  # type: ignore[misc]
            except NameError:  # a name that only type checkers import
                continue
            forms |= {name: _form(hint) for name, hint in hints.items()}
    return {name: forms.get(name, object) for name in saved_arguments(cls)}


def _form(hint: Any) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts: list[Any] = []
    for part in typing.get_args(hint) if union else [hint]:
        if part in _FORMS:
            parts += _FORMS[part]
        elif typing.get_origin(part) is typing.Literal:
            parts.append(str)
        elif typing.get_origin(part) is Callable or part is Callable:  # a schedule
            parts.append(_LINEAR_SCHEDULE)
        else:
            return object
    if float in parts:
        parts.append(_INFINITE)  # last: messages are of the first form that fits best
    return parts[0] if len(parts) == 1 else tuple(parts)


def check_own_arguments(cls: type, given: typing.Iterable[str]) -> None:
    """Complains about arguments that a constructor does not take.

    Raises:
        TypeError: The message offers the nearest name.
    """
    parameters = constructor_parameters(cls)
    for name in given:
        if name not in parameters:
            known = [known for known in parameters if not known.startswith("_")]
            raise TypeError(
                f"{cls.__name__} takes no argument {name!r}.{did_you_mean(name, known)} Arguments: {', '.join(known)}."
            )


def check_kept(made: object) -> None:
    """Complains about an argument that a constructor took and did not keep: it would not be saved.

    Raises:
        TypeError: The message says which attribute to set.
    """
    for name in saved_arguments(type(made)):
        attribute = attribute_of(name)
        if attribute not in vars(made):
            raise TypeError(
                f"{type(made).__name__}.__init__ takes {name!r} and does not keep it, so it would be lost on saving; "
                f"set self.{attribute} = {name} there."
            )


class KeepsArguments(ABCMeta):
    """Makes objects whose constructor keeps every argument as an attribute; an unknown or unkept one is an error."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's arguments, which `help` and editors would otherwise show as those of `__call__`."""
        parameters = sorted(constructor_parameters(cls).values(), key=lambda parameter: parameter.kind)
        try:
            return inspect.Signature(parameters)
        except ValueError as error:  # a subclass put an argument without a default behind its parent's
            raise AttributeError(str(error)) from None

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        check_own_arguments(cls, kwargs)
        made = super().__call__(*args, **kwargs)
        check_kept(made)
        return made
