from .algorithms.distillation import VLADistillation as VLADistillation
from .algorithms.grpo import VLAGRPO as VLAGRPO
from .algorithms.health import RatioError as RatioError
from .algorithms.ppo import VLAPPO as VLAPPO
from .callbacks import Curriculum as Curriculum
from .callbacks import LearningCurve as LearningCurve
from .callbacks import SuccessCallback as SuccessCallback
from .common.errors import NonFiniteError as NonFiniteError
from .engines import EngineError as EngineError
from .engines import RayEngine as RayEngine
from .envs.make import make_vec_env as make_vec_env
from .envs.vec_env import VLAVecEnv as VLAVecEnv
from .evaluation import Comparison as Comparison
from .evaluation import EvaluationCallback as EvaluationCallback
from .evaluation import EvaluationReport as EvaluationReport
from .evaluation import Evaluator as Evaluator
from .evaluation import compare_reports as compare_reports
from .evaluation import evaluate_policy as evaluate_policy
from .policy import VLAPolicy as VLAPolicy
from .policy.distributions import ActionTokenDistribution as ActionTokenDistribution
from .runs.keeping import RunCheckpoints as RunCheckpoints
from .runs.keeping import SaveOnSignal as SaveOnSignal
from .runs.keeping import safe_learn as safe_learn
from .runs.run_files import RunError as RunError
from .runs.run_folder import claim_run as claim_run
from .runs.run_folder import latest_run as latest_run

__version__: str
