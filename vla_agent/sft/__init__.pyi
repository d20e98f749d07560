from .data import ActionChunks as ActionChunks
from .data import Examples as Examples
from .settings import SFTSettings as SFTSettings
from .trainer import Metrics as Metrics
from .trainer import NonFiniteLossError as NonFiniteLossError
from .trainer import SupervisedTrainer as SupervisedTrainer
