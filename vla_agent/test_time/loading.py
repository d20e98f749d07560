"""From the name of a scorer to what makes one for a policy and its environments."""

from __future__ import annotations

from pathlib import Path

from vla_agent.test_time.critic import ChunkCritic
from vla_agent.test_time.look_ahead import ProcessLookahead, SuccessLookahead
from vla_agent.test_time.masked import MaskedAgreement
from vla_agent.test_time.scorers import ScorerError, ScorerMaker

KINDS = "agreement, critic:FOLDER, process-oracle or process-oracle:SCORER, success-oracle or success-oracle:DECISIONS"
_SHIPPED_SCORER, _HORIZON = "tiny-scorer", 8


def critic_folder(name: str) -> Path | None:
    """The folder of a scorer "critic:FOLDER"; None for another one."""
    kind, _, given = name.partition(":")
    return Path(given).expanduser() if kind == "critic" and given else None


def scorer_by_name(name: str) -> ScorerMaker:
    """A function that makes the scorer of a name; nothing is read before it is called.

    Args:
        name: "agreement" (`MaskedAgreement`), "critic:runs/critic" (a saved `ChunkCritic`), "process-oracle" or
            "process-oracle:tiny-scorer" (`ProcessLookahead`), "success-oracle" or "success-oracle:8"
            (`SuccessLookahead`, so many decisions ahead).

    Raises:
        ScorerError: If there is no such kind of scorer, or its part behind the colon is missing or wrong.
    """
    kind, _, given = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "agreement" and not given:
        return lambda policy, env: MaskedAgreement(policy)
    if kind == "critic" and given:
        return lambda policy, env: ChunkCritic.load(given, policy)
    if kind == "process-oracle":
        from vla_agent.process_reward import load_reward_model

        return lambda policy, env: ProcessLookahead(policy, env, load_reward_model(given or _SHIPPED_SCORER))
    if kind == "success-oracle" and (not given or (given.isascii() and given.isdecimal() and int(given))):
        return lambda policy, env: SuccessLookahead(policy, env, int(given or _HORIZON))
    raise ScorerError(f"scorer={name!r}; expected {KINDS}.")
