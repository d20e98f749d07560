from .interface import Actor as Actor
from .interface import PolicyError as PolicyError
from .interface import is_actor as is_actor
from .lerobot import LeRobotPolicy as LeRobotPolicy
from .loading import load_actor as load_actor
from .remote import RemotePolicy as RemotePolicy
