from .curriculum import Curriculum as Curriculum
from .state import StatefulCallback as StatefulCallback
from .success import LearningCurve as LearningCurve
from .success import SuccessCallback as SuccessCallback
