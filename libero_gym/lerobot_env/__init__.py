"""The environments as LeRobot's own commands take them: ``--env.discover_packages_path=libero_gym.lerobot_env``.

LeRobot imports the package that this names, and every module in it, before it reads ``--env.type=libero_gym``.
`LiberoGymConfig` needs LeRobot; `LeRobotLiberoEnv` does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
