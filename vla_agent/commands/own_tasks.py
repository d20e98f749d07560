"""Tasks of one's own, which mostly have no official initial states: what the commands' options then mean."""

from __future__ import annotations

from vla_agent.envs.suites import describe_suite


def have_states(env_id: str) -> bool:
    """Whether any task of an id's suite has official initial states.

    Args:
        env_id: The id, a BDDL file, or a folder of such.

    Raises:
        OSError: If a BDDL file cannot be read.
        ValueError: If there is no such id, or a file states no instruction.
    """
    suite = describe_suite(env_id)
    return any(map(suite.n_initial_states, range(len(suite.task_names))))


def check_states(env_id: str, option: str, example: str) -> None:
    """Refuse to go without official initial states where there is nothing else to start from.

    Args:
        env_id: As `have_states` takes it.
        option: The option that would give drawn ones, such as "--placement-seeds".
        example: A value of it.

    Raises:
        OSError, ValueError: As `have_states`; or if no task has official initial states.
    """
    if not have_states(env_id):
        raise ValueError(f"No task of {env_id} has official initial states; give drawn ones: {option} {example}.")
