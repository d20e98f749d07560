from .recording import RECORDING_FOLDER as RECORDING_FOLDER
from .recording import RecordingSummary as RecordingSummary
from .recording import expert_policy as expert_policy
from .recording import record as record
