from .pool import WorkerError as WorkerError
from .processes import MAX_REPLACEMENTS as MAX_REPLACEMENTS
from .vector import LiberoVectorEnv as LiberoVectorEnv
