"""Words that the trainer's side and the worker processes share; imports neither MuJoCo nor an environment."""

from __future__ import annotations

import signal
from typing import Any, TypeAlias

# What a worker is asked to do; everything else about a step is in the shared arrays.
MAKE, STEP, RESET, RESTORE, CALL = "make", "step", "reset", "restore", "call"
# What the template is asked to do.
COMPILE, FORK, END = "compile", "fork", "end"
# Infos that are numbers; the others follow from the task.
INFO_KEYS = ("is_success", "task_id", "init_state_id", "elapsed_steps")
# Begins the names of arrays that show the end of an episode.
FINAL = "final_"
# Where each environment is, in the array "phase".
IDLE, RUNNING, ENDED = range(3)
# What becomes of an environment whose episode ends, in the shared array "autoreset": Gymnasium's three modes, and
# DISABLED with steps that leave it as it is.
SAME_STEP, NEXT_STEP, DISABLED, REST = range(4)
# The trainer's to handle, which closes its workers: Ctrl-C, a batch system's end of job, a terminal that closes.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Makes a worker write the stacks of its threads to its crash log.
STACK_SIGNAL = signal.SIGUSR1

# Environments to reset by number: each with its seed, if it gets one, and its options.
ResetRequests: TypeAlias = dict[int, tuple[int | None, dict[str, Any]]]
