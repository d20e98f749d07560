"""Measure success rates by protocol, or compare two evaluations: ``libero-vla evaluate``."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import real_number, whole_number
from libero_gym.dimensions import Renderer
from vla_agent import EvaluationReport, RayEngine, compare_reports, evaluate_policy
from vla_agent.actors import PolicyError
from vla_agent.commands.backends import check_backend
from vla_agent.commands.engines import N_PROCESSES, check_sharing, sharing_engine
from vla_agent.commands.options import STOPPED, ids_or_none, parse_ids, parse_options
from vla_agent.commands.own_tasks import check_states
from vla_agent.envs.backends import BackendName
from vla_agent.envs.suites import located
from vla_agent.evaluation.familiarity import HELD_OUT, UNSEEN
from vla_agent.evaluation.html_comparison import COMPARISON_FILE, comparison_page
from vla_agent.evaluation.journal import JOURNAL_FILE
from vla_agent.evaluation.reports import as_folder
from vla_agent.runs.choosing import choose_save, is_run_folder

CROPS = {"auto": None, "yes": True, "no": False}


@dataclasses.dataclass
class Options:
    """What to evaluate, on what, and where to. Each field is a command-line option."""

    model: str = "tiny"  # one that ships, a folder, a hub id, or a run: runs/ppo is its best/, else its newest save
    policy: str = ""  # instead of a model: ws://host:port, lerobot:folder, expert, or python:module:Class
    replan_steps: int = 0  # of a policy's chunk, how many actions are executed before it is asked again; 0 for its own
    env_id: str = "LIBERO-Spatial-v0"  # environments to evaluate on: an id, a BDDL file, or a folder of such
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "unseen"  # such as "0-19"; "unseen" by its training.json, or "held-out", which needs one
    trained_states: bool = False  # states that the model was trained on are meant; else they are refused
    placement_seeds: str = ""  # such as "1000-1019": drawn initial states instead, each once per task
    protocol: Literal["openvla", "openpi", "fixed", "training"] = "openvla"  # fixtures and images; see the README
    center_crop: Literal["auto", "yes", "no"] = "auto"  # "yes" for models trained with random crops
    renderer: Renderer = "exact"  # of reported results; "fast" changed 1 of 200 episodes
    max_episode_steps: int = 0  # control steps; 0 for the protocol's limit
    sample: bool = False  # draw actions instead of taking the likeliest
    temperature: float | None = None  # with --sample: None for the one of the run's rollouts, and 1 for a checkpoint
    best_of_n: int = 1  # candidates of each decision, drawn at --temperature; the best by --scorer is executed
    scorer: str = "agreement"  # or critic:FOLDER; process-oracle and success-oracle try candidates in the simulator
    n_envs: int | Literal["auto"] = "auto"  # environments side by side; "auto" for as many as CPU cores
    unnorm_key: str = ""  # which action statistics, where the checkpoint has several
    film_failures: int = 0  # number of failures of each task to film as MP4
    seed: int = 0  # seed for sampling
    device: str = "auto"  # torch's name, such as "cuda:0"
    backend: BackendName = "processes"  # "warp" simulates worlds on a device, in a physics of its own: "batched"
    backend_device: str = "auto"  # for "warp": Warp's name, such as "cuda:1"; "auto" for the model's device
    engine: Literal["local", "ray"] = "local"  # "ray" plays in several processes, here or on many machines
    processes: int = N_PROCESSES  # for "ray": how many play, each in n_envs environments of its own
    address: str = ""  # for "ray": of a cluster that this machine belongs to, such as "auto"; empty starts one here
    out: Path = Path("runs/evaluation")  # folder of the report; the same command goes on where it stopped
    compare: tuple[Path, Path] | None = None  # two finished evaluations to compare into out's comparison.html, no more
    across_simulations: bool = False  # with --compare: of one model in two simulations, such as exact and batched


def check(options: Options) -> None:
    """Refuse options that mean nothing, before anything slow begins.

    Raises:
        ValueError: If a temperature is no number above 0 or nothing is drawn, simulations are to be compared where
            nothing is, a scorer is named where there is nothing to choose, or both a policy and a model are named.
    """
    if options.temperature is not None:
        if not options.sample and options.best_of_n == 1:
            raise ValueError(
                f"--temperature {options.temperature:g} is for actions that are drawn, and without --sample the "
                "likeliest are taken; add --sample, or leave --temperature out."
            )
        real_number("--temperature", options.temperature, above=0)
    if options.policy and options.model != Options.model:
        raise ValueError(f"--policy {options.policy} and --model {options.model} both say what acts; leave one out.")
    whole_number("--replan-steps", options.replan_steps, 0)
    whole_number("--best-of-n", options.best_of_n, 1)
    if options.best_of_n == 1 and options.scorer != Options.scorer:
        raise ValueError(f"--scorer {options.scorer} chooses among candidates; add --best-of-n 8, or leave it out.")
    if options.across_simulations and options.compare is None:
        raise ValueError("--across-simulations is for two evaluations: add --compare runs/a runs/b, or leave it out.")


def evaluate(options: Options) -> EvaluationReport:
    """Run the episodes that ``out`` lacks, and report on all."""
    check(options)
    check_sharing(options)
    check_backend(options)
    with sharing_engine(options) as engine:
        return _evaluate(options, engine)


def _evaluate(options: Options, engine: RayEngine | None) -> EvaluationReport:
    by_choice = options.init_states in (UNSEEN, HELD_OUT)
    states: Any = options.init_states if by_choice else parse_ids("--init-states", options.init_states)
    drawn = ids_or_none("--placement-seeds", options.placement_seeds) or []
    if drawn and options.init_states != Options.init_states:
        raise ValueError(
            f"--init-states {options.init_states} and --placement-seeds {options.placement_seeds} are two evaluations: "
            "of official initial states, or of drawn ones. Leave one of them out."
        )
    if not drawn:
        check_states(options.env_id, "--placement-seeds", "0-19")
    return evaluate_policy(
        options.policy or options.model,
        located(options.env_id),
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=() if drawn else states,
        placement_seeds=drawn,
        trained_states=options.trained_states,
        protocol=options.protocol,
        center_crop=CROPS[options.center_crop],
        renderer=options.renderer,
        max_episode_steps=whole_number("--max-episode-steps", options.max_episode_steps, 0) or None,
        deterministic=not options.sample,
        temperature=options.temperature,
        n_envs=None if options.n_envs == "auto" else whole_number("--n-envs", options.n_envs, 1),
        unnorm_key=options.unnorm_key or None,
        film_failures=whole_number("--film-failures", options.film_failures, 0),
        seed=options.seed,
        device=options.device,
        replan_steps=options.replan_steps or None,
        best_of_n=options.best_of_n,
        scorer=options.scorer,
        backend=options.backend,
        backend_device=options.backend_device,
        engine=engine,
        out=options.out,
    )


def compare(before: Path, after: Path, out: Path, *, across_simulations: bool = False) -> None:
    """Print what two finished evaluations say of each other, and write ``comparison.html`` into a folder."""
    first, second = (EvaluationReport.load(folder) for folder in (before, after))
    print(compare_reports(first, second, across_simulations=across_simulations))
    folder = after if after.is_dir() else after.parent
    page = comparison_page(first, second, folder, across_simulations=across_simulations)
    path = as_folder("--out", out) / COMPARISON_FILE
    write_text(path, page)
    print(f"Wrote {path}")


def main(options: Options) -> None:
    """Evaluate, or compare."""
    if options.compare:
        compare(*options.compare, options.out, across_simulations=options.across_simulations)
        return
    if not sys.stderr.isatty():  # progress bars are quiet there, so the log says how far it is
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        for package in ("vla_agent", "libero_gym"):
            logging.getLogger(package).setLevel(logging.INFO)
    elif is_run_folder(options.model):  # there it is logged
        print(choose_save(options.model).reason)
    try:
        report = evaluate(options)
    except KeyboardInterrupt:
        print(f"\nStopped. {_resumable(options.out)}")
        raise SystemExit(STOPPED) from None
    except PolicyError as error:
        if (options.out / JOURNAL_FILE).is_file():
            error.add_note(_resumable(options.out))
        raise
    print(report)
    if "ms_per_action" in report.timing:
        print(f"{report.timing['ms_per_action']:.1f} ms of model per action.")
    if (auc := report.scorer_auc) is not None:
        print(f"Scores of what was chosen tell successes from failures with an AUC of {auc:.2f}.")
    print(f"Wrote report.md and report.html into {options.out}")


def _resumable(out: Path) -> str:
    if not (out / JOURNAL_FILE).is_file():
        return "No episode was begun."
    return f"Episodes so far are in {out}; the same command goes on from there."


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla evaluate``."""
    main(parse_arguments(arguments))
