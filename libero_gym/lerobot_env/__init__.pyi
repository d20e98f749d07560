from .config import LiberoGymConfig as LiberoGymConfig
from .environment import LeRobotLiberoEnv as LeRobotLiberoEnv
