"""Train a process reward model: label demonstrations, fit a scorer, report how good it is on unseen initial states.

    python examples/train_process_reward.py              # two CPU cores, an hour, most of it to record: AUC 0.93
    python examples/train_process_reward.py --demonstrations runs/finetune/demonstrations      # or takes those of SFT
    python examples/train_process_reward.py --task-ids 0 --init-states 20-21 --evaluate-states 0 --n-rollouts 8 \\
        --n-dropped 8 --n-heldout-rollouts 8 --n-epochs 1 --max-episode-steps 48      # a look, minutes
    python examples/train_process_reward.py --evaluate tiny-scorer                    # judges the scorer that ships
    python examples/train_process_reward.py --scorer HuggingFaceTB/SmolVLM-500M-Instruct --batch-size 8 --n-epochs 1 \\
        --learning-rate 1e-4 --device cuda                                        # a pretrained VLM with LoRA; one GPU

Writes into ``runs/process_reward/``: ``labels.png`` (a contact sheet of the examples), ``scorer/`` (for
``make_vec_env(..., reward="process", reward_model=...)``) and ``report/`` (AUC, calibration, scores over episodes).
Needs `pip install -c constraints.txt -e ".[data]"`. The code is `vla_agent.commands.train_scorer`.
"""

from vla_agent.commands.options import run_command
from vla_agent.commands.train_scorer import main, parse_arguments

if __name__ == "__main__":
    run_command(lambda: main(parse_arguments(description=__doc__)))
