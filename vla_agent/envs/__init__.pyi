from .episodes import EpisodeStart as EpisodeStart
from .episodes import FinishedEpisode as FinishedEpisode
from .episodes import play_episodes as play_episodes
from .make import make_vec_env as make_vec_env
from .recordings import policy_episodes as policy_episodes
from .suites import SuiteDescription as SuiteDescription
from .suites import describe_suite as describe_suite
from .vec_env import VLAVecEnv as VLAVecEnv
