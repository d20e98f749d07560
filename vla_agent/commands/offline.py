"""The options of offline learning, and how they mark the episodes that `libero-vla finetune` clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from libero_gym.common.checks import choice
from vla_agent.commands.options import option_name
from vla_agent.offline import AWR, FilteredCloning, OfflineMethod, TaggedCloning, ValueSettings, estimate_advantages
from vla_agent.openvla import OpenVLA
from vla_agent.sft.data import ActionChunks

Method = Literal["clone", "filtered", "awr", "tagged"]
VALUES_FOLDER = "values"
# Options and the methods that read them.
_READERS = {
    "unnorm_key": ("filtered", "awr", "tagged"),
    "beta": ("awr",),
    "max_weight": ("awr",),
    "tag_word": ("tagged",),
    "tag_share": ("tagged",),
    "tag_dropout": ("tagged",),
    "gamma": ("awr", "tagged"),
    "returns_lambda": ("awr", "tagged"),
}


class OfflineOptions(Protocol):
    """What a command that learns offline has among its options."""

    method: Method
    model: str
    demonstrations: str
    unnorm_key: str
    beta: float
    max_weight: float
    tag_word: str
    tag_share: float
    tag_dropout: float
    gamma: float
    returns_lambda: float
    seed: int


def check_offline(options: OfflineOptions, defaults: Any) -> None:
    """Refuse options that mean nothing for their method.

    Args:
        options: The options.
        defaults: Their defaults.

    Raises:
        ValueError: If the method is unknown, lacks episodes or a model, or does not read an option that is given.
    """
    method = choice("--method", options.method, get_args(Method))
    for name, methods in _READERS.items():
        if getattr(options, name) != getattr(defaults, name) and method not in methods:
            raise ValueError(f"{option_name(name)} is for --method {' or '.join(methods)}, not {method}; leave it out.")
    if method == "clone":
        return
    if not options.demonstrations:
        raise ValueError(
            f"--method {method} learns from episodes with failures; give --demonstrations a dataset, such as "
            "`libero-vla record --policy MODEL --sample` makes."
        )
    if method_of(options).needs_advantages and not options.model:
        raise ValueError(f"--method {method} tells values from a model's hidden states; give --model a checkpoint.")
    value_settings(options)


def method_of(options: OfflineOptions) -> OfflineMethod:
    """The method that is meant, which is another one than "clone".

    Raises:
        ValueError: If one of its options is out of range.
    """
    if options.method == "awr":
        return AWR(options.beta, options.max_weight)
    if options.method == "tagged":
        return TaggedCloning(options.tag_word, options.tag_share, options.tag_dropout)
    return FilteredCloning()


def value_settings(options: OfflineOptions) -> ValueSettings:
    """The options as settings of the value head."""
    return ValueSettings(gamma=options.gamma, returns_lambda=options.returns_lambda, seed=options.seed)


def mark(options: OfflineOptions, model: OpenVLA, data: ActionChunks, folder: Path) -> dict[str, float]:
    """Give the data the weights or tags of the method, and say what came of it.

    Args:
        options: The options.
        model: The model that is to learn, before its first step.
        data: The episodes.
        folder: Folder that keeps the estimate of values, which a stopped command finds again.

    Returns:
        The method's metrics; none to clone.

    Raises:
        ValueError: If the episodes do not tell what the method asks.
    """
    if options.method == "clone":
        return {}
    method, estimate = method_of(options), None
    if method.needs_advantages:
        estimate = estimate_advantages(model, data, value_settings(options), keep=folder, progress_bar=True)
    found = ({} if estimate is None else estimate.metrics) | method.prepare(data, estimate)
    print(f"--method {options.method}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    return {f"offline/{name}": value for name, value in found.items()}


def keep_chosen_statistics(options: OfflineOptions, model: OpenVLA) -> None:
    """Leave a model that learns offline the one set of statistics by which its episodes were played.

    Raises:
        ValueError: If it has several and none is chosen, or lacks the one that is.
    """
    stats = model.config.norm_stats
    if options.method == "clone" or not stats:
        return
    model.processor.action_stats(options.unnorm_key or None)
    key = options.unnorm_key or next(iter(stats))
    model.config.norm_stats = {key: stats[key]}


def kept_statistics(options: OfflineOptions, model: OpenVLA, data: ActionChunks) -> dict[str, Any] | None:
    """Statistics for the trainer: the checkpoint's own if it learns offline, so that its bins mean what they meant.

    Args:
        options: The options.
        model: The model, with the one set that `keep_chosen_statistics` left.
        data: The episodes, which say what the checkpoint does not.

    Returns:
        None if the data's own are to be taken: to clone, and for a checkpoint without statistics.
    """
    own = list(model.config.norm_stats.values())
    if options.method == "clone" or not own:
        return None
    return {**own[0], **{name: data.statistics()[name] | own[0].get(name, {}) for name in ("action", "proprio")}}
