"""How much better than expected each recorded frame went on: its return minus its value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from vla_agent.common.atomic import Kind, destination, save_tensors, writing
from vla_agent.common.hashes import hash_weights
from vla_agent.offline.checks import outcomes_of
from vla_agent.offline.returns import lambda_returns, rewards_between
from vla_agent.offline.values import ValueSettings, encode_frames, fit_values
from vla_agent.openvla import OpenVLA
from vla_agent.runs.run_files import FolderFiles, read_json, read_tensors
from vla_agent.sft.data import ActionChunks

IDENTITY_FILE, TENSORS_FILE = "values.json", "values.safetensors"
ESTIMATED = Kind("estimate of values", (IDENTITY_FILE, TENSORS_FILE))


class Advantages(NamedTuple):
    """Estimates of F frames; the advantage of Peng et al. (2019), A = R - V(s).

    Attributes:
        returns: What each frame earned, float32 (F,); `returns.lambda_returns`.
        values: What was to be expected, float32 (F,); `values.fit_values`.
    """

    returns: np.ndarray
    values: np.ndarray

    @property
    def advantages(self) -> np.ndarray:
        """Returns minus values, float32 (F,)."""
        return self.returns - self.values

    @property
    def metrics(self) -> dict[str, float]:
        """Squared error and explained variance of the values, and the advantages' spread."""
        missed, spread = self.advantages, float(self.returns.var())
        return {
            "value_loss": float(np.square(missed).mean()),
            "explained_variance": 1 - float(missed.var()) / spread if spread else 0.0,
            "advantage_std": float(missed.std()),
        }


def estimate_advantages(
    model: OpenVLA,
    data: ActionChunks,
    settings: ValueSettings | None = None,
    *,
    unnorm_key: str | None = None,
    keep: str | Path | None = None,
    progress_bar: bool = False,
) -> Advantages:
    """Estimate what each frame earned and what was to be expected there.

    Hidden states of the frozen model are computed once; value heads are fitted to the returns on top of them, each
    episode's by the other episodes.

    Args:
        model: The model whose hidden states tell values.
        data: Episodes that record rewards, with failures and successes.
        settings: How to estimate; the defaults if None.
        unnorm_key: Name of the model's statistics that normalise the robot's state; None for the only ones.
        keep: Folder that keeps the estimate. If it holds one of the same model, data and settings, that is read.
        progress_bar: Whether to show a bar on a terminal.

    Raises:
        ValueError: If the data record no rewards, or all episodes succeed, or all fail; or if the model lacks
            ``unnorm_key``, or needs one to read states.
        FileExistsError: If ``keep`` holds something else.
    """
    settings = settings or ValueSettings()
    outcomes = outcomes_of(data, needs_failures=True)
    if unnorm_key is not None:
        model.processor.action_stats(unnorm_key)  # complains of a name that a model without states would not look up
    identity = None if keep is None else _identity(model, data, settings, unnorm_key)
    if keep is not None:
        if (found := _read(Path(keep), identity, len(data))) is not None:
            return found
        destination(keep, ESTIMATED)  # complains now, and not when all is done
    hidden = encode_frames(model, data, unnorm_key=unnorm_key, progress_bar=progress_bar)
    rewards, discounts = rewards_between(outcomes, settings.gamma)
    returns = lambda_returns(rewards, discounts)
    fit = fit_values(hidden, returns, data.episode_ids, settings, progress_bar=progress_bar)
    if settings.returns_lambda < 1:
        returns = lambda_returns(rewards, discounts, fit.values, settings.returns_lambda)
        fit = fit_values(hidden, returns, data.episode_ids, settings, progress_bar=progress_bar)
    estimate = Advantages(returns.astype(np.float32), fit.values)
    if keep is not None:
        with writing(keep, ESTIMATED) as folder:
            tensors = {name: th.from_numpy(np.ascontiguousarray(values)) for name, values in estimate._asdict().items()}
            save_tensors(tensors, folder / TENSORS_FILE)
            (folder / IDENTITY_FILE).write_text(json.dumps({"identity": identity}) + "\n")
    return estimate


def _identity(model: OpenVLA, data: ActionChunks, settings: ValueSettings, unnorm_key: str | None) -> dict[str, Any]:
    """What an estimate is a function of. Without a key there is no entry, as in files of before there were keys."""
    return {
        **({} if unnorm_key is None else {"unnorm_key": unnorm_key}),
        **dataclasses.asdict(settings),
        "model": hash_weights(model.state_dict()),
        "processor": model.processor.fingerprint(),
        "data": data.fingerprint(),
    }


def _read(folder: Path, identity: dict[str, Any] | None, n_frames: int) -> Advantages | None:
    """A kept estimate; None if there is none, it is damaged, or it is another one."""
    files = FolderFiles(folder)
    try:
        if read_json(files, IDENTITY_FILE, {"identity": {}})["identity"] != identity:
            return None
        tensors = read_tensors(files, TENSORS_FILE)
        found = Advantages(*(tensors[name].numpy() for name in Advantages._fields))
    except (ValueError, OSError, KeyError):
        return None
    return found if all(len(values) == n_frames for values in found) else None
