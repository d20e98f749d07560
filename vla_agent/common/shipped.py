"""Where the models and scorers lie that ship with the package, each in a folder of its name."""

from pathlib import Path

SHIPPED_FOLDER = Path(__file__).parents[1] / "checkpoints"
