"""Watch LIBERO: a random policy's episode of every task of a suite, as a captioned MP4 and a contact sheet.

    python examples/random_rollout.py --suite LIBERO-Spatial-v0

Needs no GPU and no weights; about two minutes on two cores, most of it drawing exact frames in software. Writes
``runs/random/<suite>.mp4`` and ``runs/random/<suite>.png``. The code is `vla_agent.commands.render`.
"""

from vla_agent.commands.options import run_command
from vla_agent.commands.render import main, parse_arguments

if __name__ == "__main__":
    run_command(lambda: main(parse_arguments(description=__doc__)))
