"""The program ``libero-vla``: one word chooses the command, everything behind it is that command's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from libero_gym.common.checks import did_you_mean
from libero_gym.common.version import DISTRIBUTION, installed_version
from vla_agent.commands.options import run_command

# Modules are imported when they are asked for: torch and transformers take seconds.
COMMANDS = {
    "train": ("vla_agent.commands.train", "train a model by PPO, and see whether it got better"),
    "evaluate": ("vla_agent.commands.evaluate", "success rates by protocol; compare two evaluations"),
    "distill": ("vla_agent.commands.distill", "teach a model on its own rollouts what a better one thinks of them"),
    "finetune": ("vla_agent.commands.finetune", "teach a model by demonstrations"),
    "train-scorer": ("vla_agent.commands.train_scorer", "train a process reward model, and judge it"),
    "train-critic": ("vla_agent.commands.train_critic", "train what chooses among candidates, from a model's episodes"),
    "record": (
        "vla_agent.commands.record",
        "record a scripted expert, or a model with its failures, as a LeRobot dataset",
    ),
    "render": ("vla_agent.commands.render", "draw every task of a suite into an MP4 and a contact sheet"),
    "view": ("vla_agent.commands.view", "look at an episode, recorded or played now, in a browser"),
    "doctor": ("libero_gym.doctor", "say what works on this machine, and what cures the rest"),
}


def usage() -> str:
    """What ``libero-vla --help`` says."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: libero-vla COMMAND [OPTIONS]\n\nReinforcement learning of vision-language-action models in LIBERO.\n\n"
        f"commands:\n{rows}\n\n`libero-vla COMMAND --help` lists a command's options."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: With status 2 if there is no such command.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name == "--version":
        print(_version())
        return
    if name not in COMMANDS:
        print(f"Unknown command {name!r}.{did_you_mean(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"libero-vla {name}", *rest]  # what a command's own help calls it
    run_command(lambda: importlib.import_module(COMMANDS[name][0]).command(rest))


def _version() -> str:
    installed = installed_version(DISTRIBUTION)
    return f"{DISTRIBUTION} {installed}" if installed else f"{DISTRIBUTION}, not installed: run from its sources"
