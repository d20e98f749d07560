"""Train a vision-language-action model by PPO in LIBERO. The project's main job.

    python examples/train_ppo.py                    # two CPU cores, no network: 6 minutes, 14 to 72 %
    python examples/train_ppo.py --long             # three tasks, twice as many decisions
    python examples/train_ppo.py --help             # every option
    python examples/train_ppo.py --model openvla/openvla-7b-finetuned-libero-spatial --env-id LIBERO-Spatial-v0 \
        --task-ids "" --renderer exact --lora-rank 32 --n-envs 32 --n-steps 128 --batch-size 32 \
        --gradient-accumulation-steps 4 --n-epochs 1 --ratio-level action --learning-rate 2e-5 \
        --value-learning-rate 2e-4 --gamma 0.99 --gae-lambda 0.95 --temperature 1.5 --critic-warmup-iterations 5 \
        --total-timesteps 400000 --eval-freq 40000   # VLA-RL's settings; should fit 48 GB, has not run yet

Evaluates greedily on initial states that training never sees, before, on the way and after, and says at the end what
changed. Writes into ``runs/ppo/``: ``curve.png`` (those evaluations with intervals, training's success beside them),
``episode.mp4`` (an unseen initial state, before and after), ``model/``, ``best/``, ``checkpoints/`` on the way,
TensorBoard and CSV logs. After any stop ``--resume runs/ppo`` goes on, with the options that the run was begun with and
with the same result as a run that was never stopped.

The job itself is `vla_agent.commands.train`: its `main` is one page, in the order in which things happen.
"""

from vla_agent.commands.options import run_command
from vla_agent.commands.train import main, parse_arguments

if __name__ == "__main__":
    run_command(lambda: main(parse_arguments(description=__doc__)))
