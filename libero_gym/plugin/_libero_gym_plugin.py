"""Registers LIBERO's environments when Gymnasium is imported, so that ``gym.make("LIBERO-Spatial-v0")`` needs no more.

It also lets ``import libero`` find our classes in processes whose parent has called `libero_gym.install_stock_api`.
Gymnasium 1.0 dropped the ``gymnasium.envs`` entry points that did this. Installed beside the packages and imported at
interpreter start through a ``.pth`` file; it costs microseconds there, imports nothing, and acts once.
"""

import os
import sys


class _RegisterAfterGymnasium:
    """Finds ``gymnasium.envs`` as Python would, and registers LIBERO's ids once that module has been executed."""

    def find_spec(self, name, path=None, target=None):
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        if name != "gymnasium.envs":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_register(module):
            execute(module)
            try:
                from libero_gym.registration import register_envs
            except ImportError:
                return  # uninstalled, or half so; Gymnasium must work all the same
            register_envs()

        spec.loader.exec_module = execute_then_register
        return spec


class _InstallBeforeLibero:
    """Calls `libero_gym.install_stock_api` before ``libero`` is imported for the first time."""

    def find_spec(self, name, path=None, target=None):
        """As `importlib.abc.MetaPathFinder.find_spec`; finds nothing itself."""
        if name == "libero":
            sys.meta_path.remove(self)
            from libero_gym.stock_api import install_stock_api

            install_stock_api()
        return None


sys.meta_path.insert(0, _RegisterAfterGymnasium())
if os.environ.get("LIBERO_GYM_STOCK_API"):
    sys.meta_path.insert(0, _InstallBeforeLibero())
