"""Frames of a simulator: exact or fast, and the OpenGL contexts that they are drawn in."""
