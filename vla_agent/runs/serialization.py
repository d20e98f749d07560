"""Values of a run as JSON: schedules and types by name, spaces, states of the random number generators."""

import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

MAX_BOX_SIZE = 2**28  # numbers in an observation: 9000 x 9000 pixels; a Box holds as many numbers in its bounds


def to_json(name: str, value: Any, progress: float) -> Any:
    """A value as JSON can hold it; `from_json` turns it back.

    Args:
        name: Name of the value, for messages.
        value: The value. A schedule that is neither constant nor linear becomes its number now, with a warning.
        progress: Remaining share of training, from 1 to 0.

    Raises:
        ValueError: If it has no JSON form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isinf(value):
        return {"float": str(value)}  # JSON has no infinity, and max_grad_norm may be it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, FloatSchedule):
        return to_json(name, value.value_schedule, progress)
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, LinearSchedule):
        return {"LinearSchedule": [value.start, value.end, value.end_fraction]}
    if isinstance(value, th.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, type) and value is getattr(th.optim, value.__name__, object()):  # and no other of its name
        return {"optimizer": value.__name__}
    if isinstance(value, th.nn.Module):
        value = type(value)  # what it holds has no place in a run, so it has to be given again
    if isinstance(value, type):
        return {"class": f"{value.__module__}.{value.__qualname__}"}  # by name alone; see `class_name`
    if isinstance(value, (list, tuple)):
        return [to_json(name, item, progress) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(name, item, progress) for key, item in value.items()}
    if callable(value):
        current = float(value(progress))
        warnings.warn(
            f"The schedule {name}={value!r} cannot be written to a checkpoint; it is saved as its value now, "
            f"{current:g}. Use a number or SB3's LinearSchedule.",
            stacklevel=6,
        )
        return current
    raise ValueError(f"{name}={value!r} cannot be written to a checkpoint; use numbers, strings, lists and dicts.")


def from_json(value: Any) -> Any:
    """The value that `to_json` wrote."""
    if isinstance(value, dict):
        if set(value) == {"LinearSchedule"}:
            return LinearSchedule(*value["LinearSchedule"])
        if set(value) == {"float"}:
            return float(value["float"])
        if set(value) == {"optimizer"}:
            found = getattr(th.optim, str(value["optimizer"]), None)
            if not (isinstance(found, type) and issubclass(found, th.optim.Optimizer)):
                raise TypeError(f"torch.optim has no optimizer {value['optimizer']!r}")
            return found
        return {key: from_json(item) for key, item in value.items()}
    return value


def class_name(value: Any) -> str | None:
    """The name of a class that `to_json` wrote, which nobody imports: a run's file must not choose what is run."""
    return str(value["class"]) if isinstance(value, dict) and set(value) == {"class"} else None


def is_given_again(value: Any) -> bool:
    """Whether a file holds a value by its class's name alone, so that whoever loads the file has to give it again."""
    return isinstance(value, (type, th.nn.Module)) and class_name(to_json("it", value, 1.0)) is not None


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A `Dict` of `Box`es or a `MultiDiscrete` as JSON; a bound of a box is one number if it is the same everywhere."""
    if isinstance(space, spaces.Dict):
        return {"Dict": {key: space_to_json(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.MultiDiscrete):
        return {"MultiDiscrete": space.nvec.tolist()}
    assert isinstance(space, spaces.Box)
    low, high = _bound_to_json(space.low), _bound_to_json(space.high)
    return {"Box": {"low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}}


def _bound_to_json(bound: np.ndarray) -> Any:
    """A number, or a list of them in row-major order; JSON has no infinity."""
    is_uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    numbers = [bound.flat[0].item()] if is_uniform else bound.flatten().tolist()
    found = [number if math.isfinite(number) else str(number) for number in numbers]
    return found[0] if is_uniform else found


def space_from_json(data: dict[str, Any]) -> spaces.Space[Any]:
    """The space that `space_to_json` wrote.

    Raises:
        ValueError: If ``data`` is no space; TypeError, KeyError or AttributeError, too.
    """
    ((kind, content),) = data.items()
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(part) for key, part in content.items()})
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(content)
    shape, dtype = tuple(content["shape"]), np.dtype(content["dtype"])
    if math.prod(shape) > MAX_BOX_SIZE:
        raise ValueError(f"a box of shape {content['shape']} is larger than any observation")
    low, high = (_bound_from_json(content[name], shape, dtype) for name in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if not isinstance(bound, list):
        return float(bound) if isinstance(bound, str) else bound
    return np.array([float(number) if isinstance(number, str) else number for number in bound], dtype).reshape(shape)


def generator_states(device: th.device) -> dict[str, Any]:
    """States of the generators of torch, NumPy and Python that SB3 draws from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - SB3 shuffles with it
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": th.get_rng_state().numpy().tobytes().hex(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(device).numpy().tobytes().hex()
    return states


def restore_generators(states: dict[str, Any], device: th.device) -> None:
    """Sets the generators to states of `generator_states`."""
    th.set_rng_state(_to_bytes(states["torch"]))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and device.type == "cuda":
        th.cuda.set_rng_state(_to_bytes(states["cuda"]), device)


def _to_bytes(text: str) -> th.Tensor:
    return th.tensor(list(bytes.fromhex(text)), dtype=th.uint8)
