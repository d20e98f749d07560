"""Files from the Hugging Face hub."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def download(repo_id: str, patterns: Sequence[str], what: str, error: type[Exception]) -> Path:
    """The folder of a repository's files, downloaded unless they are here already.

    Args:
        repo_id: Id on the hub.
        patterns: Which files.
        what: What it should be, for the message, such as "checkpoint".
        error: Class of the exception.

    Raises:
        Exception: (``error``) If there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns)))
    except Exception as cause:  # the hub's client raises many kinds, those of its transport included
        if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
            raise error(f"'{repo_id}' could not be downloaded from the hub: {cause}.") from cause
        raise error(
            f"'{repo_id}' is neither a folder here nor a {what} that could be downloaded from the hub "
            f"({type(cause).__name__}); check the spelling and the network, or give a folder."
        ) from cause
