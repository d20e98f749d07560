"""Build step: ``pip install -e`` leaves data files out, and the plugin is one; this puts it back in."""

from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """Setuptools' own command, with the data files of ``setup.cfg``."""

    def _run_install(self, category: str) -> None:
        if category == "data":
            self.run_command("install_data")
        else:
            super()._run_install(category)
