from .interface import RewardModel as RewardModel
from .interface import RewardModelError as RewardModelError
from .loading import load_reward_model as load_reward_model
from .tiny_scorer import ScorerConfig as ScorerConfig
from .tiny_scorer import TinyScorer as TinyScorer
from .vec_process_reward import VecProcessReward as VecProcessReward
from .vlm_scorer import VLMScorer as VLMScorer
