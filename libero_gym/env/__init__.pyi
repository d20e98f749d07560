from .arguments import check_task_ids as check_task_ids
from .arguments import check_task_weights as check_task_weights
from .env import ACTION_DIM as ACTION_DIM
from .env import LiberoEnv as LiberoEnv
