"""Which frames an evaluation shows: their rendered size, what is made of them, and what reports state of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vla_agent.actors.playing import ActorProcessor
from vla_agent.common.hashes import fingerprint
from vla_agent.envs.make import PUBLISHED_IMAGE_SIZE, PUBLISHED_RENDER_SIZE
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.evaluation.decoding import OWN
from vla_agent.evaluation.protocols import PROTOCOLS, EvaluationProtocol

# What is made of rendered frames, in a report's settings under "image_transform"; or the name of a function.
NOTHING, PUBLISHED = "none", "published"
UNTOLD = "of unknown content"  # ends the name of a function that its name and lines do not tell from others


def frame_options(
    protocol: EvaluationProtocol, processor: Any, center_crop: bool | None, env_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of `make_vec_env` for frames: those that the protocol makes for our models, or a policy asks for.

    Args:
        protocol: The protocol.
        processor: The model's processor.
        center_crop: The caller's wish.
        env_kwargs: The caller's arguments of the environments.

    Raises:
        ValueError: If the caller asks for other frames.
    """
    is_actor = isinstance(processor, ActorProcessor)
    if is_actor:
        options = processor.image_options(center_crop, env_kwargs)
    else:
        options = protocol.image_options(processor.image_size, center_crop, env_kwargs.get("image_size"))
    given = env_kwargs.get("image_transform", "auto")
    if "image_transform" in options and given != "auto" and (given is not None or not is_actor):
        whose = "this policy takes frames as they are rendered, so leave it out"
        if not is_actor:
            whose = f"protocol={protocol.name!r} makes its own frames; leave it out, or take protocol='training'"
        raise ValueError(f"image_transform is given, but {whose}.")
    return options


def frame_settings(env: VLAVecEnv, image_transform: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a report states of the frames: the side that is rendered, what is made of them, whether they are cropped.

    Args:
        env: The environments.
        image_transform: The caller's argument of that name; "auto" by default.
        options: What `frame_options` gave.
    """
    transform = NOTHING if env.image_transform is None else PUBLISHED
    if callable(image_transform):
        transform = name_of_function(image_transform)
    return {
        "rendered_size": env.settings.get("image_size"),
        "image_transform": transform,
        "center_crop": transform == PUBLISHED and options.get("center_crop", True),
    }


def with_frames(settings: Mapping[str, Any], protocol: Any) -> dict[str, Any]:
    """Settings of a report; an older report, which states no rendered size, gets what its protocol makes by default."""
    size = settings.get("image_size")
    if "rendered_size" in settings or not isinstance(size, int):
        return dict(settings)
    if settings.get("decoding") == OWN:
        return {**settings, "rendered_size": size, "image_transform": NOTHING}
    known = PROTOCOLS.get(protocol) if isinstance(protocol, str) else None
    if known is None or known.images == "published":
        return {**settings, "rendered_size": PUBLISHED_RENDER_SIZE, "image_transform": PUBLISHED}
    rendered = PUBLISHED_RENDER_SIZE if size == PUBLISHED_IMAGE_SIZE else size
    return {**settings, "rendered_size": rendered, "image_transform": NOTHING if rendered == size else PUBLISHED}


def name_of_function(function: Callable[..., Any]) -> str:
    """The name of a function with a hash of its lines, which says if what it holds beside them is not told."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        name += f" ({fingerprint([inspect.getsource(function).encode()])})"
    except (TypeError, OSError):  # an object, or typed in
        return f"{name} {UNTOLD}"
    kept = (getattr(function, part, None) for part in ("__closure__", "__defaults__", "__kwdefaults__", "__self__"))
    return f"{name} {UNTOLD}" if any(kept) else name
