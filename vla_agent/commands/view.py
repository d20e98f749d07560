"""Look at an episode, recorded or played now, in a browser: ``libero-vla view``."""

from __future__ import annotations

import dataclasses
import os
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import choice, whole_number
from libero_gym.dimensions import Physics, Renderer
from vla_agent.actors.loading import LEROBOT, names_actor
from vla_agent.commands.options import parse_options
from vla_agent.envs.episodes import EpisodeStart, play_episodes
from vla_agent.envs.watching import Act, WatchedEpisode, again, at_random, expert, watch, watch_recorded
from vla_agent.evaluation import EvaluationReport, Evaluator, Trial
from vla_agent.evaluation.policies import RegressionPolicy
from vla_agent.evaluation.protocols import PROTOCOLS
from vla_agent.evaluation.reports import REPORT_FILE
from vla_agent.process_reward import load_reward_model
from vla_agent.viewing.page import episode_page

_DATASET = Path("meta") / "info.json"


@dataclasses.dataclass
class Options:
    """What to look at. Each field is a command-line option."""

    source: tyro.conf.Positional[str] = ""  # a LeRobot data set's folder, or an evaluation's; empty plays an episode
    episode: int = 0  # of the source
    env_id: str = "LIBERO-Spatial-v0"  # environment to play in: an id, a BDDL file, or a folder of such
    task_id: int = 0  # of its suite
    init_state: int = 0  # official initial state
    placement_seed: int = -1  # a drawn initial state instead, from 0
    policy: str = "expert"  # who plays: "expert", "random", a model, or what evaluate's --policy takes
    protocol: str = "openvla"  # of evaluation: which images a model sees, and where fixtures stand
    reward_model: str = ""  # a process reward model whose scores are shown: "tiny-scorer", or a folder
    cameras: str = "agentview,wrist"  # or some of these, and frontview, birdview, sideview
    image_size: int = 256  # side of the frames in pixels, even
    renderer: Renderer = "exact"  # "fast" needs no OpenGL
    max_steps: int = 0  # control steps; 0 for the task's limit
    seed: int = 0  # seed for random actions
    out: Path = Path("runs/view/episode.html")  # the page; it needs no server and no other file


def look(options: Options) -> WatchedEpisode:
    """The episode that the options name.

    Raises:
        OSError, ValueError: If there is none.
    """
    whole_number("--episode", options.episode, 0)
    source = Path(options.source)
    if not options.source:
        return played(options)
    if (source / _DATASET).is_file():
        return watch_recorded(options.source, options.episode)
    if (source / REPORT_FILE).is_file():
        return played_again(options, EvaluationReport.load(source))
    raise ValueError(
        f"'{options.source}' is no recording: expected a folder with {_DATASET} (a LeRobot data set) or {REPORT_FILE} "
        "(an evaluation); leave it out to play an episode."
    )


def played(options: Options, **how: Any) -> WatchedEpisode:
    """An episode that is played now; ``how`` are further arguments of the policy's `Evaluator`."""
    if options.policy in _PLAYERS:
        protocol = PROTOCOLS[choice("--protocol", options.protocol, PROTOCOLS)]
        drawn = options.placement_seed >= 0
        state = -1 - options.placement_seed if drawn else whole_number("--init-state", options.init_state, 0)
        start = protocol.start(Trial(whole_number("--task-id", options.task_id, 0), state))
        settle_steps = how.get("settle_steps", protocol.settle_steps)
        return _watch(options, start, _PLAYERS[options.policy], settle_steps, how.get("physics", "exact"))
    start, settle_steps, actions = _decided(options, **how)
    return _watch(options, start, again(actions), settle_steps, how.get("physics", "exact"))


def played_again(options: Options, report: EvaluationReport) -> WatchedEpisode:
    """An evaluation's episode, played again by its model under its protocol.

    Raises:
        ValueError: If there is no such episode, or the model's name alone does not say what it is.
    """
    if options.episode >= len(report.episodes):
        raise ValueError(f"--episode {options.episode}: the evaluation has episodes 0 to {len(report.episodes) - 1}.")
    result = report.episodes[options.episode]
    name = str(report.manifest.get("model", {}).get("name") or "")
    if options.policy == Options.policy:
        if not name or ":" in name:  # a report is a file, and no file decides what code runs here
            raise ValueError(f"The evaluation is of {name or 'a policy without a name'}; say what plays: --policy ...")
        options = dataclasses.replace(options, policy=name)
    options = dataclasses.replace(
        options,
        env_id=report.settings["env_id"],
        task_id=result.task_id,
        init_state=result.init_state_id,
        placement_seed=-1 - result.init_state_id,  # below 0 for an official state
        protocol=report.conditions["protocol"],
        renderer=report.conditions["renderer"],
        max_steps=options.max_steps or _limit(report, result.task_id),
    )
    episode = played(options, **_how(report, name, options.policy))
    n_steps, same = episode.n_frames - 1, episode.success == result.success and episode.n_frames - 1 == result.steps
    told = f"episode {options.episode}: {_ended(result.success)} after {result.steps} steps"
    if not report.settings.get("deterministic", True) or report.settings.get("best_of_n", 1) > 1:
        again_told = f"its actions were drawn; the likeliest ones: {_ended(episode.success)} after {n_steps} steps"
    else:
        again_told = "the same again" if same else f"played again, it is another: {n_steps} steps"
    return dataclasses.replace(episode, facts={"evaluation": f"{told}; {again_told}"} | episode.facts)


def _how(report: EvaluationReport, name: str, policy: str) -> dict[str, Any]:
    """Further arguments of the `Evaluator` that has a policy play as an evaluation's did.

    Args:
        report: The evaluation.
        name: Name of what played in it.
        policy: Name of what plays now; if it is of another kind, a checkpoint or not, it has its own crop and steps.
    """
    settings, conditions = report.settings, report.conditions
    how = {"unnorm_key": settings.get("unnorm_key"), "settle_steps": conditions["settle_steps"]}
    if "physics" in conditions:
        how["physics"] = conditions["physics"]
    steps = settings.get("replan_steps")
    if names_actor(policy) != names_actor(name):
        return how
    if not names_actor(policy):
        return how | {"center_crop": settings.get("center_crop")}
    # LeRobot's policies without chunks state 1, and refuse to be told a number.
    return how if steps is None or (policy.startswith(LEROBOT) and steps == 1) else how | {"replan_steps": steps}


def _limit(report: EvaluationReport, task_id: int) -> int:
    """Control steps that an episode of a task was allowed."""
    limits = report.conditions["max_steps"]  # one number, or one for each task
    return int(limits[report.conditions["task_ids"].index(task_id)] if isinstance(limits, list) else limits)


def _ended(success: bool) -> str:
    return "success" if success else "failure"


def _watch(
    options: Options, start: EpisodeStart, choose: Callable[[Any], Act], settle_steps: int, physics: Physics
) -> WatchedEpisode:
    scorer = load_reward_model(options.reward_model) if options.reward_model else None
    episode = watch(
        options.env_id,
        start,
        choose,
        cameras=tuple(filter(None, options.cameras.split(","))),
        image_size=options.image_size,
        renderer=options.renderer,
        physics=physics,
        settle_steps=settle_steps,
        max_steps=whole_number("--max-steps", options.max_steps, 0) or None,
        scorer=scorer,
        seed=options.seed,
    )
    return dataclasses.replace(episode, facts={"policy": options.policy} | episode.facts)


def _decided(options: Options, **how: Any) -> tuple[EpisodeStart, int, np.ndarray]:
    """A policy's episode as an evaluation plays it: its start, the settling steps, and the actions (T, 7).

    The simulator is deterministic, so that the same actions make the same episode before other cameras.
    """
    drawn = options.placement_seed >= 0
    with Evaluator(
        options.policy,
        options.env_id,
        task_ids=[options.task_id],
        init_state_ids=() if drawn else [options.init_state],
        placement_seeds=[options.placement_seed] if drawn else (),
        trained_states=True,  # to look at one is no claim
        protocol=options.protocol,
        renderer=options.renderer,
        max_episode_steps=options.max_steps or None,
        n_envs=1,
        **how,
    ) as evaluator:
        start = evaluator.protocol.start(evaluator.trials[0])
        continuous = isinstance(evaluator.policy, RegressionPolicy)
        (episode,) = play_episodes(evaluator.env, evaluator.policy, [start], continuous=continuous)
        actions = episode.actions if continuous else evaluator.env.codec.decode(episode.actions)
        return start, evaluator.conditions["settle_steps"], actions.reshape(-1, actions.shape[-1])[: episode.steps]


_PLAYERS: dict[str, Callable[[Any], Act]] = {"expert": expert, "random": at_random}


def main(options: Options) -> None:
    """Write the page, and open it where there is a screen."""
    episode = look(options)
    page = episode_page(
        title=episode.instruction,
        success=episode.success,
        fps=episode.fps,
        frames=episode.frames,
        plots=episode.plots,
        facts=episode.facts,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, page)
    print(f"Wrote {options.out}: {'success' if episode.success else 'failure'}, {episode.n_frames} frames")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(options.out.absolute().as_uri())


def command(arguments: Sequence[str]) -> None:
    """``libero-vla view``."""
    main(parse_options(Options, __doc__, arguments))
