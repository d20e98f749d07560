"""Process rewards: models that see from a frame how much of an instruction is done, and rewards made of them."""

from vla_agent.process_reward.interface import RewardModel, RewardModelError, load_reward_model
from vla_agent.process_reward.tiny_scorer import ScorerConfig, TinyScorer
from vla_agent.process_reward.vec_process_reward import VecProcessReward
from vla_agent.process_reward.vlm_scorer import VLMScorer

__all__ = [
    "RewardModel",
    "RewardModelError",
    "ScorerConfig",
    "TinyScorer",
    "VLMScorer",
    "VecProcessReward",
    "load_reward_model",
]
