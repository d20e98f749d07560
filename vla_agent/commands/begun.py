"""The options that a run was begun with, which are the defaults of a command that goes on with it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import did_you_mean
from libero_gym.common.json_files import read_json
from vla_agent.commands.options import T, parse_options
from vla_agent.runs.choosing import is_run_folder
from vla_agent.runs.run_files import RunError

FILE = "options.json"
# What a command is told anew each time: where it runs, and what it may do.
ANEW = ("out", "resume", "existing", "allow_changes", "long", "device", "address")
MAX_BYTES = 1 << 20


def keep_options(options: Any) -> None:
    """Writes down the options of a command, in the folder of its run."""
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in ANEW}
    write_text(options.out / FILE, json.dumps(kept, indent=1) + "\n")


def parse_resumable(kind: type[T], description: str | None, given: Sequence[str], default: T | None = None) -> T:
    """As `parse_options`; with ``--resume``, the options that the run was begun with are the defaults.

    ``--out`` then is the run's own folder by default. Runs of earlier versions did not keep their options.

    Raises:
        RunError: If the run's options cannot be read, or one has no value that the command takes.
    """
    default = default or kind()
    resumed = _value_of("--resume", given)
    return parse_options(kind, description, given, default if resumed is None else begun(default, Path(resumed)))


def begun(default: T, resumed: Path) -> T:
    """Defaults of a command that goes on with a saved run, or the newest in a folder; see `parse_resumable`.

    Raises:
        RunError: As `parse_resumable`.
    """
    near = (resumed, resumed.parent, resumed.parent.parent)  # of runs/ppo, and of runs/ppo/checkpoints/0000000064
    folder = next((path for path in near if (path / FILE).is_file()), None)
    if folder is None:
        own = next((path for path in near if is_run_folder(path)), None)
        return default if own is None else dataclasses.replace(default, out=own)  # type: ignore[type-var]
    return dataclasses.replace(default, out=folder, **_read(type(default), folder / FILE))  # type: ignore[type-var]


def _read(kind: type[Any], path: Path) -> dict[str, Any]:
    try:
        kept = read_json(path, kind=object, max_bytes=MAX_BYTES)
        if not isinstance(kept, dict):
            raise ValueError("it holds no options by name")
    except (OSError, ValueError) as error:
        raise RunError(f"The options in '{path}' cannot be read ({error}); {_WAY_OUT}") from None
    hints = get_type_hints(kind)
    kept = {name: value for name, value in kept.items() if name not in ANEW}
    for name, value in kept.items():
        if name not in hints:
            raise RunError(f"'{path}' has an option {name!r} of another command.{did_you_mean(name, hints)} {_WAY_OUT}")
        if not _fits(value, hints[name]):
            raise RunError(f"'{path}' has {name}={value!r:.80}, which this command does not take; {_WAY_OUT}")
    return kept


_WAY_OUT = "move that file away, and give all options that are no defaults."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is one of a field's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    return type(value) in ((int, float) if hint is float else (hint,))


def _value_of(option: str, given: Sequence[str]) -> str | None:
    """What an option is given on a command line, the last time."""
    values = [after for word, after in itertools.pairwise(given) if word == option]
    values += [word.removeprefix(f"{option}=") for word in given if word.startswith(f"{option}=")]
    return values[-1] if values and values[-1] != "None" else None
