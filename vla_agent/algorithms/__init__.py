"""Algorithms: the loop, the rollout, the losses and their health."""
