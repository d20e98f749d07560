"""Whether recorded episodes tell enough to learn from how well they went."""

from __future__ import annotations

from vla_agent.sft.data import ActionChunks
from vla_agent.sft.outcomes import Outcomes

_RECORD = "`libero-vla record --policy MODEL --sample`"


def outcomes_of(data: ActionChunks, *, needs_failures: bool) -> Outcomes:
    """The data's outcomes.

    Args:
        data: The episodes.
        needs_failures: Whether some of them must have failed.

    Raises:
        ValueError: If the data record no rewards, no episode succeeds, or none fails that must.
    """
    outcomes = data.outcomes
    if outcomes is None:
        raise ValueError(
            f"The data set records no next.reward, so nothing tells its good episodes; record it with {_RECORD}, or "
            "clone all of it (--method clone)."
        )
    n_successes, n_episodes = int(outcomes.successes.sum()), len(outcomes.durations)
    if not n_successes:
        raise ValueError(
            f"None of the {n_episodes} episodes succeeds, so there is nothing to learn from; record more, or those of "
            "a better policy."
        )
    if needs_failures and n_successes == n_episodes:
        raise ValueError(
            f"All {n_episodes} episodes succeed, so there is nothing to tell apart; record failures too with "
            f"{_RECORD}, or clone them (--method clone)."
        )
    return outcomes
