"""Success rates by protocol, reports of them, and what two reports say of each other."""

from vla_agent.evaluation.callback import EvaluationCallback
from vla_agent.evaluation.comparison import Comparison, compare_reports
from vla_agent.evaluation.evaluator import Evaluator, evaluate_policy
from vla_agent.evaluation.protocols import PROTOCOLS, Protocol
from vla_agent.evaluation.reports import EpisodeResult, EvaluationReport, ReportError, SuccessRow
from vla_agent.evaluation.trials import Trial, plan_trials

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "EpisodeResult",
    "EvaluationCallback",
    "EvaluationReport",
    "Evaluator",
    "Protocol",
    "ReportError",
    "SuccessRow",
    "Trial",
    "compare_reports",
    "evaluate_policy",
    "plan_trials",
]
