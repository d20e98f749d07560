"""Policies that read frames, the robot's state and words, and answer with motions: on a server, LeRobot's, yours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
