"""Stable-Baselines3 plugin that trains vision-language-action models by reinforcement learning."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agent.algorithms.health import NonFiniteError as NonFiniteError
    from vla_agent.algorithms.health import RatioError as RatioError
    from vla_agent.algorithms.ppo import VLAPPO as VLAPPO
    from vla_agent.callbacks.curriculum import Curriculum as Curriculum
    from vla_agent.callbacks.success import LearningCurve as LearningCurve
    from vla_agent.callbacks.success import SuccessCallback as SuccessCallback
    from vla_agent.envs.vec_env import VLAVecEnv as VLAVecEnv
    from vla_agent.envs.vec_env import make_vec_env as make_vec_env
    from vla_agent.evaluation import Comparison as Comparison
    from vla_agent.evaluation import EvaluationCallback as EvaluationCallback
    from vla_agent.evaluation import EvaluationReport as EvaluationReport
    from vla_agent.evaluation import Evaluator as Evaluator
    from vla_agent.evaluation import compare_reports as compare_reports
    from vla_agent.evaluation import evaluate_policy as evaluate_policy
    from vla_agent.policy.distributions import ActionTokenDistribution as ActionTokenDistribution
    from vla_agent.policy.policy import VLAPolicy as VLAPolicy
    from vla_agent.runs.keeping import RunCheckpoints as RunCheckpoints
    from vla_agent.runs.keeping import SaveOnSignal as SaveOnSignal
    from vla_agent.runs.keeping import safe_learn as safe_learn
    from vla_agent.runs.run_folder import claim_run as claim_run
    from vla_agent.runs.run_folder import latest_run as latest_run
    from vla_agent.runs.saved_run import RunError as RunError

_HOMES = {
    "VLAPPO": "ppo",
    "ActionTokenDistribution": "distributions",
    "Comparison": "evaluation",
    "Curriculum": "curriculum",
    "EvaluationCallback": "evaluation",
    "EvaluationReport": "evaluation",
    "Evaluator": "evaluation",
    "LearningCurve": "callbacks",
    "NonFiniteError": "health",
    "RatioError": "health",
    "RunCheckpoints": "keeping",
    "RunError": "checkpointing",
    "SaveOnSignal": "keeping",
    "SuccessCallback": "callbacks",
    "VLAPolicy": "policy",
    "VLAVecEnv": "vec_env",
    "claim_run": "run_folder",
    "compare_reports": "evaluation",
    "evaluate_policy": "evaluation",
    "latest_run": "run_folder",
    "make_vec_env": "vec_env",
    "safe_learn": "keeping",
}

__all__ = [
    "VLAPPO",
    "ActionTokenDistribution",
    "Comparison",
    "Curriculum",
    "EvaluationCallback",
    "EvaluationReport",
    "Evaluator",
    "LearningCurve",
    "NonFiniteError",
    "RatioError",
    "RunCheckpoints",
    "RunError",
    "SaveOnSignal",
    "SuccessCallback",
    "VLAPolicy",
    "VLAVecEnv",
    "claim_run",
    "compare_reports",
    "evaluate_policy",
    "latest_run",
    "make_vec_env",
    "safe_learn",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: SB3, torch and transformers take seconds."""
    if name == "__version__":
        from libero_gym.version import version

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
