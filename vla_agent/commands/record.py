"""Record a scripted expert's demonstrations as a LeRobot dataset: ``libero-vla record``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from libero_gym.common.checks import whole_number
from libero_gym.demonstrations import record
from libero_gym.dimensions import Renderer
from vla_agent.commands.options import ids_or_none, parse_options


@dataclasses.dataclass
class Options:
    """What to record, and where to. Each field is a command-line option."""

    suite: str = "libero_spatial"  # LIBERO's name of the suite
    policy: str = "libero_gym.demonstrations:expert_policy"  # "module:function"; a scripted expert by default
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    cameras: str = "agentview,wrist"  # agentview, wrist, or both
    image_size: int = 256  # side of the frames in pixels, even
    renderer: Renderer = "exact"  # "exact" draws stock LIBERO's pixels
    action_noise: float = 0.0  # standard deviation of disturbances; the recorded actions are the policy's own
    keep_failures: bool = False  # failed episodes enter the dataset, marked
    seed: int = 0  # seed for everything that is drawn
    n_workers: int = 2  # processes
    out: Path = Path("runs/demonstrations")  # folder of the dataset; the same command goes on or extends it


def main(options: Options) -> None:
    """Record what is missing."""
    whole_number("--n-placements", options.n_placements, minimum=0)
    summary = record(
        options.out,
        options.suite,
        options.policy,
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--init-states", options.init_states),
        placement_seeds=range(options.n_placements),
        cameras=tuple(filter(None, options.cameras.split(","))),
        image_size=options.image_size,
        renderer=options.renderer,
        action_noise=options.action_noise,
        record_intended=options.action_noise > 0,
        keep_failures=options.keep_failures,
        seed=options.seed,
        n_workers=options.n_workers,
    )
    print(f"{summary.n_written} of {summary.n_planned} episodes are in {options.out}")


def command(arguments: Sequence[str]) -> None:
    """``libero-vla record``."""
    main(parse_options(Options, __doc__, arguments))
