"""The cells of `forty_tasks.py`: what each trains, in which order they come, and the commands behind them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vla_agent.commands.options import option_name

# Each suite's environments, in the order of the tables.
SUITES = {
    "spatial": "LIBERO-Spatial-v0",
    "object": "LIBERO-Object-v0",
    "goal": "LIBERO-Goal-v0",
    "10": "LIBERO-10-v0",
}
FORTY = "forty"  # all of them in one run
ENV_IDS = SUITES | {FORTY: "LIBERO-40-v0"}
TASKS = 10  # of a suite
STATES = 20  # official initial states 0 to 19 of each task judge
PPO = "train_ppo.py"
DECODINGS = ("greedy", "sampled")  # the likeliest actions; actions drawn at the temperature of the rollouts


@dataclass(frozen=True)
class Group:
    """Trainings from one start with one set of options.

    Attributes:
        start: Name or folder of the model that they start from.
        seeds: Seeds of each suite that is trained on, or of `FORTY`.
        options: Options of the script, by field, where they are not its defaults.
        against: Group whose cells of the same suite and seed these are compared with; "" for none.
        by_suite: By suite, the options of those that have others.
        script: The example that trains, or the command of `libero-vla`; it has the train command's options for what to
            train on and where to.
        teacher: Group whose best model of the same suite and seed is given as ``--teacher``; "" for none.
        on_judged: Whether it trains on the states that judge it, as test-time training does.
        continues: Group whose run of the same suite and seed goes on here, in a copy, with these options; "" for none.
            ``total_timesteps`` counts its decisions.
    """

    start: str
    seeds: Mapping[str, Sequence[int]]
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    by_suite: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    script: str = PPO
    teacher: str = ""
    on_judged: bool = False
    continues: str = ""

    def options_of(self, suite: str) -> Mapping[str, Any]:
        """The options of a suite."""
        return self.by_suite.get(suite, self.options)


@dataclass(frozen=True)
class Cell:
    """One training and its judgement."""

    group: str
    suite: str
    seed: int

    @property
    def name(self) -> str:
        """Such as "strong/spatial/0"."""
        return f"{self.group}/{self.suite}/{self.seed}"

    @property
    def judged_on(self) -> tuple[str, ...]:
        """The suites that it is judged on."""
        return tuple(SUITES) if self.suite == FORTY else (self.suite,)


def planned(groups: Mapping[str, Group]) -> list[Cell]:
    """Every cell of the table in the order of work: first seeds of all groups, then second ones, and so on.

    A cell that continues another comes with that one.
    """
    cells = [
        (list(groups[group.continues or name].seeds[suite]).index(seed), Cell(name, suite, seed))
        for name, group in groups.items()
        for suite in sorted(group.seeds, key=list(ENV_IDS).index)
        for seed in group.seeds[suite]
    ]
    return [cell for _, cell in sorted(cells, key=lambda cell: cell[0])]


def chosen(groups: Mapping[str, Group], patterns: Sequence[str]) -> list[Cell]:
    """The planned cells that a pattern fits; a whole name adds a cell that is not planned, such as a further seed.

    Raises:
        ValueError: If a pattern fits no cell and is no name of one.
    """
    cells = planned(groups)
    if not patterns:
        return cells
    found = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            found.append(parse(groups, pattern))
    return found


def parse(groups: Mapping[str, Group], name: str) -> Cell:
    """The cell of a name.

    Raises:
        ValueError: If there is no such group or suite, or the seed is no number.
    """
    parts = name.split("/")
    if len(parts) == 3 and parts[0] in groups and parts[1] in ENV_IDS and parts[2].isdecimal():
        return Cell(parts[0], parts[1], int(parts[2]))
    raise ValueError(
        f"No cell {name!r}; expected GROUP/SUITE/SEED such as strong/spatial/0, or a pattern such as 'few*/spatial/*'. "
        f"Groups: {', '.join(groups)}. Suites: {', '.join(ENV_IDS)}."
    )


def training_options(group: Group, cell: Cell) -> dict[str, Any]:
    """What a cell gives to the train command, by field; the folder is left out."""
    return {
        "env_id": ENV_IDS[cell.suite],
        "task_ids": "",
        "model": group.start,
        "seed": cell.seed,
        "eval_states": "",  # the states that judge may not choose the best
        **group.options_of(cell.suite),
    }


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them."""
    arguments = []
    for name, value in options.items():
        flag = option_name(name)
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            arguments += [flag, str(value)]
    return arguments


def judging_arguments(
    model: str, suite: str, decoding: str, temperature: float, renderer: str, on_judged: bool = False
) -> list[str]:
    """The evaluate command's arguments for 200 episodes of a suite; the folder is left out."""
    arguments = ["--model", model, "--env-id", ENV_IDS[suite], "--protocol", "training"]
    arguments += ["--init-states", f"0-{STATES - 1}", "--renderer", renderer, "--n-envs", "8"]
    arguments += ["--trained-states"] if on_judged else []
    return arguments + (["--sample", "--temperature", str(temperature)] if decoding == "sampled" else [])
