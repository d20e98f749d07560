"""Scripted experts that solve LIBERO's tasks from the simulator's state."""
