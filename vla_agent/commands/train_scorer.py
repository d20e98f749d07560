"""Train a process reward model, and report how good it is on unseen initial states: ``libero-vla train-scorer``.

`learn` labels demonstrations and a policy's episodes and fits a scorer to them; `judge` reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th

from libero_gym.demonstrations import DamagedEpisodeError, LeRobotReader, record, segment_episode
from libero_gym.tasks import get_suite
from vla_agent import VLAPPO, make_vec_env
from vla_agent.commands.checks import check_there
from vla_agent.commands.chosen_episodes import of_tasks
from vla_agent.commands.options import ids_or_none, option_name, parse_ids, parse_options
from vla_agent.common.hashes import hash_files
from vla_agent.envs.recordings import policy_episodes
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.provenance import provenance
from vla_agent.evaluation.results import describe_ids
from vla_agent.openvla.files import resolve_folder
from vla_agent.policy.lora import LoraSettings
from vla_agent.process_reward import RewardModel, ScorerConfig, TinyScorer, VLMScorer, load_reward_model
from vla_agent.process_reward.episodes import PolicyEpisode, load_episodes, save_episodes
from vla_agent.process_reward.interface import check_camera
from vla_agent.process_reward.labels import LabelledFrames, contact_sheet, grasps, label_episodes
from vla_agent.process_reward.pages import write_report
from vla_agent.process_reward.reports import report
from vla_agent.process_reward.training import TrainingSettings, train_tiny_scorer, train_vlm_scorer


@dataclasses.dataclass
class Options:
    """What to learn from, and what. Each field is a command-line option."""

    evaluate: str = ""  # a scorer to judge, such as tiny-scorer or runs/process_reward/scorer; none is trained then
    scorer: str = "tiny"  # what to train; or the folder or hub id of a vision-language model
    demonstrations: str = ""  # a LeRobot dataset of the suite, less its judged states; empty to record the expert
    env_id: str = "LIBERO-Spatial-v0"  # environments of the policy's episodes: an id, a BDDL file, or a folder of such
    suite: str = "libero_spatial"  # LIBERO's name of the suite, a BDDL file, or a folder of such
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states to learn from
    evaluate_states: str = "0-7"  # official initial states to judge on; no episode of them is learned from
    policy: str = "tiny-libero"  # policy whose episodes give failures, and successes as PPO will meet them
    n_rollouts: int = 240  # episodes of the policy to learn from
    n_dropped: int = 320  # further episodes, of which only the failures are taken; the hand opens at random in them
    drop_prob: float = 0.1  # probability that a decision opens the hand in those
    n_heldout_rollouts: int = 160  # episodes of the policy to judge by
    temperature: float = 0.5  # temperature of the policy's actions; PPO samples with the same
    image_size: int = 112  # side of the frames in pixels
    max_episode_steps: int = 0  # control steps of the policy's episodes; 0 for the suite's own limit
    n_between: int = 3  # frames between keyframes, per keyframe, to learn from
    n_negatives: int = 5  # negatives per keyframe to learn from; the report's examples are balanced
    n_epochs: int = 8  # passes over the examples
    batch_size: int = 64  # examples per step
    learning_rate: float = 1e-3  # learning rate of the scorer
    lora_rank: int = 16  # rank of a vision-language model's adapters
    seed: int = 0  # seed for everything that is drawn
    device: str = "cuda" if th.cuda.is_available() else "cpu"  # torch's name
    out: Path = Path("runs/process_reward")  # folder of all that is written


States = Literal["init_states", "evaluate_states"]  # the option that names initial states


def check(options: Options) -> None:
    """Refuse options that mean nothing, before anything slow begins.

    Raises:
        ValueError: If there are no such tasks or states, a state is to be learned from and judged on, or the expert and
            the policy would play other tasks.
    """
    suite, played = get_suite(options.suite), describe_suite(options.env_id)
    if suite.name != played.name:
        raise ValueError(
            f"--suite {options.suite} and --env-id {options.env_id} are of different tasks: the expert would play "
            f"{suite.name}, and the policy {played.name}. Give --env-id {suite.env_id}, or --suite {played.name}."
        )
    judged = set(states_of(options, "evaluate_states"))
    check_there("--evaluate-states", options.evaluate_states, options.env_id, options.task_ids)
    if options.evaluate:
        return
    check_there("--init-states", options.init_states, options.env_id, options.task_ids)
    if both := sorted(judged & set(states_of(options, "init_states"))):
        raise ValueError(
            f"--init-states and --evaluate-states share {describe_ids(both)}: a scorer that learned from a state is "
            "not judged on it. Keep them apart."
        )


def states_of(options: Options, which: States) -> list[int]:
    """The official initial states that an option names."""
    return parse_ids(option_name(which), getattr(options, which))


def expert_episodes(options: Options, name: str, which: States) -> list[Any]:
    """The expert's episodes from some initial states, which are recorded unless a dataset to learn from is given.

    Args:
        options: The options.
        name: Folder of the recording, in ``out``.
        which: Option that names the states.
    """
    given = options.demonstrations if which == "init_states" else ""
    root = given or str(options.out / name)
    if not given:
        record(
            root,
            options.suite,
            "libero_gym.demonstrations:expert_policy",
            task_ids=ids_or_none("--task-ids", options.task_ids),
            init_state_ids=states_of(options, which),
            cameras=("agentview",),
            image_size=options.image_size,
            renderer="fast",
            action_noise=0.12,
            noise_steps=5,
            random_prefix=8,
            seed=options.seed,
            crf=15,
            n_workers=2,
        )
    reader = LeRobotReader(root, cameras=("image",))
    indices = learned_from(options, reader) if given else None
    return [episode for _, episode in reader.enumerate(indices)]  # damaged ones are named and skipped


def learned_from(options: Options, reader: LeRobotReader) -> list[int]:
    """Indices of given demonstrations that are of the tasks asked for, and from no state that is judged.

    Raises:
        ValueError: If there is none.
    """
    tasks, judged = ids_or_none("--task-ids", options.task_ids), states_of(options, "evaluate_states")
    indices = list(range(len(reader)))
    if tasks is not None:
        indices = of_tasks(reader, indices, get_suite(options.suite).name, tasks)
    kept = []
    for index in indices:
        try:
            if reader.origin(index).init_state_id not in judged:
                kept.append(index)
        except DamagedEpisodeError:
            kept.append(index)  # whoever reads it says so
    if not kept:
        raise ValueError(
            f"All {len(indices)} episodes of {reader.root} are from states that are judged, --evaluate-states "
            f"{options.evaluate_states}; give others, or other --demonstrations."
        )
    return kept


def rollouts(
    options: Options, name: str, which: States, n_episodes: int, drop_prob: float = 0.0
) -> list[PolicyEpisode]:
    """The policy's episodes from some initial states, sampled as PPO samples them; those of an earlier run are read.

    Episodes to learn from start where the demonstrations do. A scorer could otherwise tell a failure by a layout of
    objects that no success has.

    Args:
        options: The options.
        name: Name of the file that keeps them, in ``out``.
        which: Option that names the initial states.
        n_episodes: How many.
        drop_prob: Probability that a decision opens the hand.
    """
    about: dict[str, Any] = {"states": getattr(options, which), "n_episodes": n_episodes, "drop_prob": drop_prob}
    about["sha256"] = hash_files(resolve_folder(options.policy, weights=True))  # another model may come by this name
    made_by = ("env_id", "task_ids", "policy", "temperature", "max_episode_steps", "seed")
    about |= {key: getattr(options, key) for key in made_by}
    path = options.out / f"{name}.npz"
    if (kept := load_episodes(path, about)) is not None:
        return kept
    env = make_vec_env(
        options.env_id,
        8,
        task_id=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=states_of(options, which),
        model=options.policy,
        renderer="fast",
        physics="fast",
        max_episode_steps=options.max_episode_steps or None,
        seed=options.seed,
    )
    policy_kwargs = {"model": options.policy, "temperature": options.temperature}
    model = VLAPPO("VLAPolicy", env, batch_size=8, policy_kwargs=policy_kwargs, device=options.device)
    episodes = policy_episodes(env, model, n_episodes, drop_prob=drop_prob, seed=options.seed)
    env.close()
    save_episodes(path, episodes, about)
    return episodes


def keyframes(episode: Any) -> np.ndarray:
    """Frames at which the hand rests, as in VLA-RL, or at which it grasps, in a policy's episodes."""
    if isinstance(episode, PolicyEpisode):
        return grasps(episode)
    return segment_episode(episode.state, episode.actions).keyframes


def train(options: Options, examples: LabelledFrames) -> TinyScorer | VLMScorer:
    """Fit the scorer that was asked for to the examples."""
    instructions = tuple(sorted(set(examples.instructions)))
    if options.scorer == "tiny":
        th.manual_seed(options.seed)
        scorer = TinyScorer(ScorerConfig(instructions, examples.images.shape[1])).to(options.device)
        settings = TrainingSettings(options.n_epochs, options.batch_size, options.learning_rate, seed=options.seed)
        return train_tiny_scorer(scorer, examples, settings)
    vlm = VLMScorer.from_pretrained(
        options.scorer, device=options.device, lora=LoraSettings(options.lora_rank, options.lora_rank)
    )
    train_vlm_scorer(
        vlm,
        examples,
        n_epochs=options.n_epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return vlm


def learn(options: Options) -> RewardModel:
    """Label episodes, draw some of the examples, and fit a scorer to them."""
    demonstrations = expert_episodes(options, "demonstrations", "init_states")
    own = rollouts(options, "rollouts", "init_states", options.n_rollouts)
    others = dataclasses.replace(options, seed=options.seed + 1)  # so that other episodes are played
    found = rollouts(others, "dropped", "init_states", options.n_dropped, options.drop_prob)
    dropped = [episode for episode in found if not episode.success]
    examples = label_episodes(
        [*demonstrations, *own, *dropped],
        keyframes,
        n_between=options.n_between,
        n_negatives=options.n_negatives,
        seed=options.seed,
    )
    contact_sheet(examples, options.out / "labels.png", seed=options.seed)
    n_failures = sum(not episode.success for episode in own)
    print(f"{len(demonstrations)} demonstrations, {len(own)} episodes of the policy, of which {n_failures} failed,")
    print(f"and {len(dropped)} failures in which the hand was opened")
    print(f"Examples: {examples.counts()}")
    scorer = train(options, examples)
    scorer.save(options.out / "scorer")
    return scorer


def judge(options: Options, scorer: RewardModel) -> None:
    """Report how good a scorer is on episodes from initial states that it never saw."""
    heldout = expert_episodes(options, "heldout", "evaluate_states")
    shapes = {camera: frames.shape[1:] for camera, frames in heldout[0].images.items()}
    check_camera(scorer, shapes)
    met = rollouts(options, "heldout_rollouts", "evaluate_states", options.n_heldout_rollouts)
    judged = [*heldout, *(episode for episode in met if not episode.success)]
    unseen = label_episodes(judged, keyframes, n_holding=1, seed=options.seed)
    result = report(scorer, unseen, heldout, met, seed=options.seed)
    drawn = [*heldout[:1], *[e for e in met if e.success][:2], *[e for e in met if not e.success][:3]]
    chosen = {key: str(value) for key, value in dataclasses.asdict(options).items() if key != "out"}
    write_report(options.out / "report", result, scorer, unseen, drawn, {"options": chosen, **provenance()})
    print(result.markdown())


def main(options: Options) -> None:
    """Learn and judge a scorer, or only judge one."""
    check(options)
    options.out.mkdir(parents=True, exist_ok=True)
    judge(options, load_reward_model(options.evaluate, options.device) if options.evaluate else learn(options))
    print(f"Wrote into {options.out}")


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla train-scorer``."""
    main(parse_arguments(arguments))
