"""Callbacks: success by task, the learning curve, the curriculum."""
