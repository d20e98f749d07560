"""Errors that several rooms raise."""


class NonFiniteError(RuntimeError):
    """A reward, an observation or a value was infinite or no number; or a loss or gradient was, again and again."""
