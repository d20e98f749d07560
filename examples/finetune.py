"""Teach a model by demonstrations: record them, fine-tune, evaluate.

    python examples/finetune.py               # LIBERO-Spatial; two CPU cores, 63 minutes: 76.5 % on states 0 to 19
    python examples/finetune.py --suite libero_40 --paraphrase 0.5 --autocast bfloat16 --n-steps 14000   # `tiny-libero`
    python examples/finetune.py --task-ids 0 --init-states 20-21 --n-steps 20 --batch-size 4          # a look, minutes
    python examples/finetune.py --model openvla/openvla-7b --demonstrations data/mine --lora-rank 32 --image-size 256 \\
        --batch-size 16 --learning-rate 5e-4 --bin-sigma 0 --keyframe-coef 0 --ema-decay 0 --crop-area 0.9      # a GPU

Without `--demonstrations` a scripted expert records them first. The same command again goes on where it stopped.

`--fps 0` takes demonstrations of any stated rate. The model learns one action per frame, and the environment executes
20 actions per second. Use it for conversions of LIBERO that state 10 frames per second but hold one per control step.

Needs `pip install -c constraints.txt -e ".[data]"`. The code is `vla_agent.commands.finetune`.
"""

from vla_agent.commands.finetune import main, parse_arguments
from vla_agent.commands.options import run_command

if __name__ == "__main__":
    run_command(lambda: main(parse_arguments(description=__doc__)))
