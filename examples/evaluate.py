"""Evaluate a model by the published protocol, or compare two evaluations.

    python examples/evaluate.py --init-states 0-1 --max-episode-steps 40 --renderer fast     # a look, two CPU cores
    python examples/evaluate.py --model tiny-libero --env-id LIBERO-40-v0 --protocol training    # forty tasks: 55 %
    python examples/evaluate.py --model openvla/openvla-7b-finetuned-libero-spatial --n-envs 16    # 500 episodes, a GPU
    python examples/evaluate.py --model runs/ppo --init-states held-out --film-failures 2
    python examples/evaluate.py --policy ws://localhost:8000 --protocol openpi    # pi0 or another policy on a server
    python examples/evaluate.py --compare runs/evaluation runs/other

Writes ``report.json``, ``report.md``, ``report.html``, ``success.png`` and ``episodes.jsonl`` into ``--out``;
``--compare`` writes ``comparison.html``. After Ctrl-C the same command goes on where it stopped. The code is
`vla_agent.commands.evaluate`.
"""

from vla_agent.commands.evaluate import main, parse_arguments
from vla_agent.commands.options import run_command

if __name__ == "__main__":
    run_command(lambda: main(parse_arguments(description=__doc__)))
