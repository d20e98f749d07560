"""Demonstrations: recorded, cut, written and read as LeRobot's and LIBERO's files."""
