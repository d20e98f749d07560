"""The one reader of JSON that somebody may have sent: bounded in size and depth, and every fault is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # the published 7B's tokenizer and index are the largest files read: 2 MB
KINDS: dict[type, str] = {dict: "an object", list: "a list"}


def read_json(
    path: str | Path, *, kind: type = dict, error: type[ValueError] = ValueError, max_bytes: int = MAX_BYTES
) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        kind: What stands at its top: ``dict`` or ``list``; ``object`` for anything.
        error: What to raise where the content is wrong.
        max_bytes: A larger file is refused unread.

    Raises:
        ValueError: (``error``) If the file is too large, is no JSON, is nested too deeply, or holds something else.
        OSError: If it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as stream:  # its size as it is read: a file may grow, and a pipe has none
        content = stream.read(max_bytes + 1)
    return parse_json(content, f"'{path}'", kind=kind, error=error, max_bytes=max_bytes)


def parse_json(
    content: bytes | str,
    name: str,
    *,
    kind: type = dict,
    error: type[ValueError] = ValueError,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """As `read_json`, of content that was read already.

    Args:
        content: UTF-8 text.
        name: What messages call it.
        kind: What stands at its top: ``dict`` or ``list``; ``object`` for anything.
        error: What to raise where the content is wrong.
        max_bytes: Larger content is refused.

    Raises:
        ValueError: (``error``) If it is too large, is no JSON, is nested too deeply, or holds something else.
    """
    if len(content) > max_bytes:
        raise error(f"{name} is larger than {max_bytes / 2**20:.0f} MiB; expected a small JSON file.")
    try:
        value = json.loads(content)
    except UnicodeDecodeError as reason:
        raise error(f"{name} is damaged: it is no UTF-8 text ({reason}).") from reason
    except ValueError as reason:  # `JSONDecodeError`, and an integer of too many digits
        raise error(f"{name} is damaged: it is no JSON ({reason}).") from reason
    except RecursionError as reason:
        raise error(f"{name} is damaged: its JSON is nested too deeply to be read.") from reason
    if not isinstance(value, kind):
        raise error(f"{name} is damaged: expected {KINDS[kind]} at its top, got {type(value).__name__}.")
    return value
