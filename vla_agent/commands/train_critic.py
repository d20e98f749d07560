"""Train a critic of chunks for a model, from its own episodes: ``libero-vla train-critic``.

`play` plays the model's episodes, task by task, and keeps what a critic learns from; `read` takes it from recordings
instead. `fit` trains the critic, and says how well it tells successes from failures that it never saw. `play` and `fit`
go on where they stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from tqdm import tqdm

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import real_number, whole_number
from libero_gym.common.json_files import read_json
from libero_gym.demonstrations import LeRobotReader
from libero_gym.dimensions import CAMERA_KEYS, Renderer
from vla_agent.commands.chosen_episodes import states_of
from vla_agent.commands.options import ids_or_none, option_name, parse_ids, parse_options
from vla_agent.common.randomness import own_randomness
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.suites import describe_suite, located
from vla_agent.evaluation.decoding import drawing_at
from vla_agent.evaluation.policies import as_policy, load_subject, processor_of
from vla_agent.evaluation.provenance import TrainingStates, provenance, write_training_states
from vla_agent.sft.data import ActionChunks
from vla_agent.test_time.calibration import success_auc
from vla_agent.test_time.critic import ChunkCritic, CriticConfig, normalized
from vla_agent.test_time.critic_training import CriticMetrics, CriticSettings, CriticTrainer
from vla_agent.test_time.decisions import Decisions, play_decisions
from vla_agent.test_time.recorded import recorded_decisions
from vla_agent.test_time.scorers import candidate_policy

DECISIONS, TRAINING, CRITIC = "decisions", "training", "critic"
ABOUT_FILE, METRICS_FILE, REPORT_FILE = "about.json", "metrics.jsonl", "report.json"
_HELD_OUT = 5  # every so many episodes, one is kept from the training


@dataclasses.dataclass
class Options:
    """Whose critic, and what from. Each field is a command-line option."""

    model: str = "tiny-libero-few"  # one that ships, a folder, a hub id, or a run: whose hidden states are read
    recordings: str = ""  # a LeRobot dataset of its episodes, failures included; empty to play them
    env_id: str = "LIBERO-Spatial-v0"  # environments of its episodes: an id, a BDDL file, or a folder of such
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states of its episodes; keep others for evaluation
    episodes_per_state: int = 1  # from each state, with random numbers of their own
    temperature: float = 0.5  # of the actions that are drawn in them
    renderer: Renderer = "fast"  # as the evaluations that the critic is for
    max_episode_steps: int = 0  # control steps; 0 for the suite's own limit
    unnorm_key: str = ""  # which action statistics, where the checkpoint has several
    gamma: float = 0.95  # discount per decision of a success to come
    n_epochs: int = 15  # passes over the decisions
    batch_size: int = 256  # decisions per step
    learning_rate: float = 3e-4  # AdamW's
    rank_coef: float = 0.5  # weight of the loss that keeps chunks low that were never executed
    n_heads: int = 4  # of which the lowest is the answer
    n_envs: int = 8  # environments side by side
    seed: int = 0  # seed for everything that is drawn
    device: str = "auto"  # torch's name, such as "cuda:0"
    out: Path = Path("runs/critic")  # folder of all that is written; evaluate takes --scorer critic:runs/critic/critic


def play(options: Options) -> tuple[CriticConfig, Decisions]:
    """The decisions of the model's episodes, and the configuration of a critic for it; finished tasks are read.

    Raises:
        ValueError: If ``out`` holds decisions of other episodes, or an option is out of range.
    """
    env_id = located(options.env_id)
    states = parse_ids("--init-states", options.init_states)
    n_repeats = whole_number("--episodes-per-state", options.episodes_per_state, 1)
    tasks = ids_or_none("--task-ids", options.task_ids)
    if tasks is None:
        tasks = list(range(len(describe_suite(env_id).task_names)))
    real_number("--temperature", options.temperature, above=0)
    subject = load_subject(options.model, options.device)
    env = make_vec_env(
        env_id,
        whole_number("--n-envs", options.n_envs, 1),
        model=processor_of(subject.model, "tiny"),
        task_id=tasks,
        renderer=options.renderer,
        unnorm_key=options.unnorm_key or None,
        max_episode_steps=whole_number("--max-episode-steps", options.max_episode_steps, 0) or None,
        seed=options.seed,
    )
    try:
        with own_randomness(options.seed):
            policy = as_policy(subject.model, env, options.unnorm_key or None)
        actor = getattr(policy, "policy", policy)
        config = CriticConfig.of(actor, gamma=options.gamma, n_heads=options.n_heads)
        about = {"backbone": config.backbone, "states": states, "n_repeats": n_repeats}
        about |= {key: getattr(options, key) for key in ("temperature", "renderer", "max_episode_steps", "seed")}
        _claim(options.out / DECISIONS, {"env_id": env_id, "unnorm_key": options.unnorm_key, **about})
        parts = []
        for task_id in tqdm(tasks, desc="episodes", unit="task", disable=None):
            path = options.out / DECISIONS / f"task_{task_id}.safetensors"
            if not path.is_file():
                starts = [EpisodeStart(task_id, state) for _ in range(n_repeats) for state in states]
                drawn = int(np.random.SeedSequence([options.seed, task_id]).generate_state(1)[0])
                with own_randomness(drawn), drawing_at(policy, options.temperature):
                    Decisions.joined(play_decisions(env, policy, starts)).save(path)
            parts.append(Decisions.load(path))
    finally:
        env.close()
    return config, Decisions.joined(parts)


def read(options: Options) -> tuple[CriticConfig, Decisions]:
    """The decisions of recorded episodes, and the configuration of a critic for the model.

    Raises:
        OSError: If there is no such dataset.
        ValueError: If it records no rewards, or other cameras than the model's.
    """
    reader = LeRobotReader(options.recordings, fps=None)
    model = load_subject(options.model, options.device).model
    known = getattr(model, "policy", None)
    key = options.unnorm_key or getattr(known, "unnorm_key", None)
    policy = candidate_policy(SimpleNamespace(backbone=getattr(known, "backbone", model), unnorm_key=key))
    backbone = policy.backbone
    data = ActionChunks(
        (episode for _, episode in reader.enumerate()),
        cameras=CAMERA_KEYS[: backbone.config.num_images],
        image_size=backbone.processor.image_size,
        chunk_size=backbone.config.action_chunk_size,
    )
    config = CriticConfig.of(policy, gamma=options.gamma, n_heads=options.n_heads)
    return config, recorded_decisions(policy, data, progress_bar=True)


def fit(options: Options, config: CriticConfig, decisions: Decisions) -> dict[str, Any]:
    """Train the critic, save it, and report on episodes that it never saw.

    Raises:
        ValueError: If the episodes teach nothing, or ``out`` holds a training with other settings.
    """
    settings = CriticSettings(
        n_epochs=options.n_epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        rank_coef=options.rank_coef,
        seed=options.seed,
    )
    held_out = decisions.episodes % _HELD_OUT == 0
    trainer = CriticTrainer(config, _rows(decisions, ~held_out), settings)
    if (options.out / TRAINING).is_dir():
        trainer.resume(options.out / TRAINING)
    lines = (options.out / METRICS_FILE).read_text().splitlines()[: trainer.epoch] if trainer.epoch else []

    def note(metrics: CriticMetrics) -> None:
        row = {"epoch": trainer.epoch, **{f"critic/{name}": value for name, value in metrics._asdict().items()}}
        auc = held_out_auc(trainer.critic, _rows(decisions, held_out))
        lines.append(json.dumps(row | ({} if auc is None else {"critic/held_out_auc": auc})))
        write_text(options.out / METRICS_FILE, "\n".join(lines) + "\n")
        trainer.save(options.out / TRAINING)

    critic = trainer.run(note)
    critic.save(options.out / CRITIC)
    if (states := trained_states(options)) is not None:
        write_training_states(options.out / CRITIC, states)
    counts = {
        name: {"episodes": len(set(part.episodes)), "successes": len(set(part.episodes[part.success]))}
        for name, part in (("trained", _rows(decisions, ~held_out)), ("held_out", _rows(decisions, held_out)))
    }
    found = held_out_auc(critic, _rows(decisions, held_out))
    options_ = {key: str(value) for key, value in dataclasses.asdict(options).items() if key != "out"}
    report = {"decisions": len(decisions.bins), **counts, "held_out_auc": found, "options": options_, **provenance()}
    write_text(options.out / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    return report


def trained_states(options: Options) -> TrainingStates | None:
    """The official initial states of the episodes, by suite; None if recordings do not tell them all."""
    if not options.recordings:
        tasks, states = ids_or_none("--task-ids", options.task_ids), parse_ids("--init-states", options.init_states)
        return describe_suite(located(options.env_id)).states_by_source(tasks, states)
    reader = LeRobotReader(options.recordings, cameras=(), fps=None)
    found, n_unknown = states_of(reader, range(len(reader)))
    return None if n_unknown else found


@th.no_grad()
def held_out_auc(critic: ChunkCritic, decisions: Decisions) -> float | None:
    """How far the mean Q of an episode's decisions tells whether it succeeds; None if all ended alike."""
    critic.eval()
    device = critic.norm.weight.device
    logits = critic(th.from_numpy(decisions.hidden).to(device), normalized(decisions.bins).to(device)).amin(0)
    scores = logits.double().sigmoid().cpu().numpy()
    episodes = np.unique(decisions.episodes)
    means = [float(scores[decisions.episodes == episode].mean()) for episode in episodes]
    return success_auc(means, [bool(decisions.success[decisions.episodes == episode][0]) for episode in episodes])


def _rows(decisions: Decisions, rows: np.ndarray) -> Decisions:
    return Decisions(*(column[rows] for column in decisions))


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Note what a folder's decisions are of.

    Raises:
        ValueError: If it holds some of other episodes.
    """
    path = folder / ABOUT_FILE
    if path.is_file():
        found = read_json(path)
        differing = [
            f"{key} is {found.get(key)!r} and not {value!r}" for key, value in about.items() if found.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"'{folder}' holds decisions of other episodes: {'; '.join(differing)}. Give another --out, or move it."
            )
        return
    write_text(path, json.dumps(about, indent=1) + "\n")


def main(options: Options) -> None:
    """Play or read episodes, and fit.

    Raises:
        ValueError: If tasks or states are named, and recordings are given, which are read as they are.
    """
    for name in ("task_ids", "init_states") if options.recordings else ():
        if (asked := getattr(options, name)) != getattr(Options, name):
            raise ValueError(
                f"{option_name(name)} {asked} is for episodes that are played, and --recordings are all read; leave "
                "one of them out."
            )
    report = fit(options, *(read(options) if options.recordings else play(options)))
    for name in ("trained", "held_out"):
        print(f"{name.replace('_', ' ')}: {report[name]['successes']} of {report[name]['episodes']} episodes succeed")
    if report["held_out_auc"] is not None:
        print(f"On held-out episodes mean Q tells successes from failures with an AUC of {report['held_out_auc']:.2f}.")
    print(f"Wrote into {options.out}; evaluate takes --best-of-n 8 --scorer critic:{options.out / CRITIC}")


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla train-critic``."""
    main(parse_arguments(arguments))
