"""LIBERO's own classes on this package's simulator, for evaluations that were written for LIBERO.

    import libero_gym
    libero_gym.install_stock_api()
    from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv    # ours

or, without touching a script::

    python -m libero_gym.stock_api script.py --its-own-arguments
"""

from libero_gym.stock_api.installing import install_stock_api, uninstall_stock_api

__all__ = ["install_stock_api", "uninstall_stock_api"]
