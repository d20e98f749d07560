"""Reader and writer of LeRobot datasets, under the format's name; `lerobot_layout` describes the format."""

from libero_gym.demonstrations.lerobot_reader import LeRobotReader as LeRobotReader
from libero_gym.demonstrations.lerobot_writer import LeRobotWriter as LeRobotWriter
