"""Build step: ``pip install -e`` leaves data files out, and the plugin is one; this puts it back in.

Every build imports this file, so it also refuses an old Python: with constraints.txt, pip would complain of NumPy's
version instead, before it has read ``python_requires``.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - what this is for; keep this file free of newer syntax
    raise SystemExit(
        "ERROR: libero-vla needs Python 3.11 or newer; this is Python {}.{}. Make the virtual environment with a newer "
        "one, such as python3.11 -m venv.".format(*sys.version_info[:2])
    )

from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """Setuptools' own command, with the data files of ``setup.cfg``."""

    def _run_install(self, category: str) -> None:
        if category == "data":
            self.run_command("install_data")
        else:
            super()._run_install(category)
