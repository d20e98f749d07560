"""The parts of `scaling_model.py`: the model, and what measures its pieces."""
