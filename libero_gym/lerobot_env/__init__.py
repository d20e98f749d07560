"""The environments as LeRobot's own commands take them: ``--env.discover_packages_path=libero_gym.lerobot_env``.

LeRobot imports the package that this names, and everything in it, before it reads ``--env.type=libero_gym``.
"""

from libero_gym.lerobot_env.config import LiberoGymConfig as LiberoGymConfig
from libero_gym.lerobot_env.environment import LeRobotLiberoEnv as LeRobotLiberoEnv
