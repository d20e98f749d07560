"""Errors that several rooms raise."""


class NonFiniteError(RuntimeError):
    """A reward, an observation or a value was infinite or NaN; or several losses or gradients in a row were."""
