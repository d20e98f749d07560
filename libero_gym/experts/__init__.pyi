from .expert import Expert as Expert
from .expert import Outcome as Outcome
from .expert import run_expert as run_expert
