from .errors import EngineError as EngineError
from .ray_engine import RayEngine as RayEngine
