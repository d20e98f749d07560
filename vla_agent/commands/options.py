"""Command lines from dataclasses: each field is an option, and the comment behind it its help."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")

# Environment variable that has commands show the traceback of an error.
DEBUG = "LIBERO_VLA_DEBUG"
MAX_IDS = 100_000
STOPPED = 130  # exit status of a command that a signal stopped


def parse_options(
    kind: type[T], description: str | None, arguments: Sequence[str] | None = None, default: T | None = None
) -> T:
    """The options of a command line.

    Args:
        kind: A dataclass whose fields all have defaults.
        description: First lines of ``--help``.
        arguments: The command line without the program's name; ``sys.argv``'s by default.
        default: Other defaults than the dataclass's.
    """
    return tyro.cli(kind, description=description, args=arguments, default=default or kind())


def option_name(name: str) -> str:
    """A field's option, such as "--task-ids" for "task_ids"."""
    return f"--{name.replace('_', '-')}"


def parse_ids(option: str, text: str) -> list[int]:
    """Ids of a command line, such as [0, 3, 4, 5] for "0,3-5".

    Args:
        option: The option, such as "--task-ids", for the message.
        text: Numbers from 0 and ranges of them, between commas.

    Raises:
        ValueError: If a part is neither a number nor a range, a range runs backwards, or there are more than 100,000.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        if match is None:
            raise ValueError(f"{option} {text!r}: {part!r} is no id; expected ids from 0, such as '0,3-5'.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{option} {text!r}: {part!r} runs backwards; did you mean '{last}-{first}'?")
        if len(ids) + last - first >= MAX_IDS:
            raise ValueError(f"{option} {text!r} names more than {MAX_IDS:,} ids.")
        ids += range(first, last + 1)
    return ids


def ids_or_none(option: str, text: str) -> list[int] | None:
    """As `parse_ids`, but None for an empty text, which leaves the choice to the function that is given it.

    Raises:
        ValueError: As `parse_ids`.
    """
    return parse_ids(option, text) if text.strip() else None


def run_command(command: Callable[[], object]) -> None:
    """Run a command as a program does: an error becomes one sentence and the exit status 1.

    The traceback is shown if the environment variable ``LIBERO_VLA_DEBUG`` is set, and for errors of types that no
    check raises.
    """
    try:
        command()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        if os.environ.get(DEBUG):
            raise
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        print(f"Error: {error}{notes}\n({DEBUG}=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(1) from None
