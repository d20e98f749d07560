from .curriculum import Curriculum as Curriculum
from .success import LearningCurve as LearningCurve
from .success import SuccessCallback as SuccessCallback
