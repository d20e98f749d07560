"""SB3's own zips, which hold pickles: they are read only if that is asked for, and never written over other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libero_gym.common.checks import flag
from vla_agent.common.atomic import ZIP
from vla_agent.runs.run_files import RunError, find, is_foreign_zip


def is_for_sb3(path: Any, unsafe_sb3_zip: bool) -> bool:
    """Whether SB3's own loader, which unpickles, is to read what is there.

    Raises:
        TypeError: If ``path`` is neither a path nor an open file.
        ValueError: If ``unsafe_sb3_zip`` is no bool: "no" would be taken for yes.
        RunError: If only SB3's loader could read it, and nobody asked for that.
    """
    unsafe_sb3_zip = flag("unsafe_sb3_zip", unsafe_sb3_zip)
    is_path = isinstance(path, (str, Path))
    if not is_path and not hasattr(path, "read"):
        raise TypeError(f"path={path!r:.80}; expected the folder or zip of a saved run, as a str or Path.")
    found = find(path) if is_path else None
    if found is not None and not is_foreign_zip(found):
        return False
    if not unsafe_sb3_zip:
        what = f"'{found}' is a zip of SB3's" if is_path else f"A {type(path).__name__} would be read as a zip of SB3's"
        raise RunError(
            f"{what}, and loading it would unpickle it: whoever wrote it could run any code here. Give "
            "unsafe_sb3_zip=True if you wrote it yourself, or the folder or zip of a VLAPPO with 'VLAPolicy'."
        )
    return True


def check_free_for_sb3(path: Any) -> None:
    """Refuses a path at which SB3, which replaces any file, would replace something else than a zip of its own.

    Raises:
        FileExistsError: If there is such a file.
    """
    if isinstance(path, (str, Path)):
        if not Path(path).name:
            raise FileExistsError(f"'{path}' is a folder; give the model a file's name.")
        target = Path(path) if Path(path).suffix else Path(path).with_name(Path(path).name + ZIP)
        if target.exists() and not is_foreign_zip(target):
            raise FileExistsError(f"'{target}' is there, and no zip of SB3's; it stays. Give the model another name.")
