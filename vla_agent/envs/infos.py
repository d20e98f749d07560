"""Gymnasium's batched infos as SB3 has them: one for each environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def unbatch_infos(infos: dict[str, Any], indices: Iterable[int]) -> list[dict[str, Any]]:
    """One info per environment from Gymnasium's batched infos, with the keys that the masks (`_key`) grant it.

    Values are Python's own numbers, which JSON can hold. Gymnasium's `DictInfoToList` gives NumPy's, and converts
    what `step` and `reset` return, but not what `step_wait` or `restore` do.

    Args:
        infos: Arrays by key, and their masks; a dict is a nested batch. `final_obs` and `final_info` are left out.
        indices: Indices of the environments wanted.
    """
    chosen = list(indices)
    results: list[dict[str, Any]] = [{} for _ in chosen]
    for key, values in infos.items():
        if key in ("final_obs", "final_info") or f"_{key}" not in infos:
            continue
        if isinstance(values, dict):
            values = dict(zip(chosen, unbatch_infos(values, chosen), strict=True))
        elif values.ndim == 1:
            values = values.tolist()
        mask = infos[f"_{key}"]
        for info, i in zip(results, chosen, strict=True):
            if mask[i]:
                info[key] = values[i]
    return results
