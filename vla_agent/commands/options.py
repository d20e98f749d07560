"""Command lines from dataclasses: each field is an option, and the comment behind it its help."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from libero_gym.checks import parse_ids

T = TypeVar("T")

DEBUG = "LIBERO_VLA_DEBUG"


def parse_options(
    kind: type[T], description: str | None, arguments: Sequence[str] | None = None, default: T | None = None
) -> T:
    """The options of a command line.

    Args:
        kind: A dataclass whose fields all have defaults.
        description: What ``--help`` says first.
        arguments: The command line without the program's name; ``sys.argv``'s by default.
        default: Other defaults than the dataclass's.
    """
    return tyro.cli(kind, description=description, args=arguments, default=default or kind())


def option_name(name: str) -> str:
    """A field's option, such as "--task-ids" for "task_ids"."""
    return f"--{name.replace('_', '-')}"


def ids_or_none(option: str, text: str) -> list[int] | None:
    """Such as [0, 3, 4, 5] for "0,3-5"; None for an empty text, which leaves the choice to what it is given to.

    Raises:
        ValueError: If a part is no id; it names the option.
    """
    return parse_ids(option, text) if text else None


def run_command(command: Callable[[], object]) -> None:
    """Run a command as a program does: what went wrong is one sentence, and the exit status 1.

    The traceback is shown where ``LIBERO_VLA_DEBUG`` is set, and for errors of types that no check raises.
    """
    try:
        command()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        if os.environ.get(DEBUG):
            raise
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        print(f"Error: {error}{notes}\n({DEBUG}=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(1) from None
