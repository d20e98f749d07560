"""Stable-Baselines3 plugin that trains vision-language-action models by reinforcement learning."""
