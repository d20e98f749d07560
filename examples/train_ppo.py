"""Train a vision-language-action model by PPO in LIBERO. The project's main job.

    python examples/train_ppo.py                                         # two CPU cores, no network: some nine minutes
    python examples/train_ppo.py --task-ids 0-2 --total-timesteps 12288  # 21 minutes: from 68 % to about 92 %
    python examples/train_ppo.py --model openvla/openvla-7b-finetuned-libero-spatial --reward sparse \
        --max-episode-steps 0 --renderer exact --lora-rank 32 --n-envs 32 --n-steps 128 --batch-size 32 \
        --gradient-accumulation-steps 4 --n-epochs 1 --ratio-level action --learning-rate 2e-5 \
        --value-learning-rate 2e-4 --gamma 0.99 --gae-lambda 0.95 --temperature 1.5 --critic-warmup-iterations 5 \
        --total-timesteps 400000                                                            # VLA-RL's; an 80 GB GPU

Writes into ``runs/ppo/``: TensorBoard and CSV logs, ``curve.png`` (success and return against environment steps),
``episode.mp4`` (one episode of the trained policy), ``checkpoints/`` on the way and ``model/`` at the end; with
``--eval-freq``, ``best/`` too. Stopped in any way, the same command with ``--resume runs/ppo`` goes on and gives what
it would have given.

The default starts from ``tiny-libero``, which ships and learned from demonstrations; ``--model tiny`` is randomly
initialised and exercises every part. Of training's episodes, whose actions are drawn, expect some 80 % to succeed; what
the second command gains on unseen states, decoded greedily, was measured over three seeds (README).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.rewards import SHAPING_GAMMA
from vla_agent import (
    VLAPPO,
    Curriculum,
    EvaluationCallback,
    LearningCurve,
    RunCheckpoints,
    VLAVecEnv,
    latest_run,
    make_vec_env,
    safe_learn,
)
from vla_agent.evaluation.manifest import read_training_states, write_training_states
from vla_agent.openvla.folder import resolve_folder
from vla_agent.process_reward import VecProcessReward
from vla_agent.vec_env import describe_suite


@dataclasses.dataclass
class Options:
    """What to train, on what, and where to. Each field is a command-line option."""

    env_id: str = "LIBERO-Spatial-v0"
    task_ids: str = ""  # such as "0,3"; all tasks of the suite if empty
    init_states: str = "20-49"  # official ones to train on; keep others for evaluation
    n_placements: int = 300  # further initial states per task to train on, drawn from the BDDL's regions
    model: str = "tiny-libero"  # what ships, competent, or "tiny", random; a checkpoint folder, or a hub id
    max_episode_steps: int = 0  # control steps; 0 for the suite's own limit
    reward: str = "sparse"  # success alone, what evaluation counts; or with "progress" (privileged), or "process"
    reward_model: str = "tiny-scorer"  # for "process": what ships, or a folder of train_process_reward.py
    reward_mode: str = "potential"  # for "process": or "bonus", VLA-RL's
    reward_weight: float = 1.0  # for "process"
    renderer: str = "fast"  # "exact" draws stock LIBERO's pixels
    physics: str = "fast"  # "exact" gives stock LIBERO's states to the bit
    n_envs: int = 8
    n_steps: int = 32  # of the policy, per environment and iteration; tiny-libero decides 8 control steps at a time
    total_timesteps: int = 4096
    batch_size: int = 128
    n_epochs: int = 2
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    value_learning_rate: float = 1e-3
    gamma: float = 0.95  # of a decision, here 8 control steps: a grasp that fails and is tried again costs something
    gae_lambda: float = 0.9
    value_gae_lambda: float = 0.95  # of the critic's returns
    n_value_epochs: int = 10  # further passes for the value head alone
    ratio_level: str = "token"  # each of a chunk's 56 ratios is clipped on its own; or "action", their product
    target_kl: float = 0.0  # stop an update beyond 1.5 times this divergence of whole actions; 0 never does
    temperature: float = 0.5  # so near to greedy decoding, which evaluation is by, that what helps one helps the other
    critic_warmup_iterations: int = 6
    policy_warmup_iterations: int = 0
    privileged_critic: bool = True  # the critic knows from the simulator where the objects are
    bootstrap_time_limits: bool = False  # evaluations count success within the limit: running out of time is a failure
    lora_rank: int = 0  # 0 trains all weights
    lora_target: str = "all-linear"  # or "language": the language model alone
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: for a large model on a small GPU
    kl_ref_coef: float = 0.0  # pulls back to the model that it started from; needs LoRA
    detach_value: bool = True  # keep the critic's gradient out of the backbone
    seed: int = 0
    device: str = "auto"
    out: Path = Path("runs/ppo")
    curriculum: str = "uniform"  # how tasks are drawn, by their success: or "hardest" (VLA-RL's), or "frontier"
    curriculum_tau: float = 0.5
    checkpoint_every: int = 10  # iterations
    eval_freq: int = 0  # evaluate greedily every so many timesteps, and keep the best in best/; 0 never does
    n_eval_placements: int = 20  # drawn initial states per task to choose the best by: none is trained or reported on
    resume: Path | None = None  # a folder of an earlier run, such as runs/ppo, to go on from where it stopped
    allow_changes: bool = False  # resume with other options than the run was made with


def parse_ids(text: str) -> list[int]:
    """Such as [0, 3, 4, 5] for "0,3-5"; none for an empty text."""
    ids: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


def build(options: Options) -> tuple[VLAVecEnv | VecProcessReward, VLAPPO]:
    """The environments and the learner."""
    if options.reward == "progress" and (options.gamma != SHAPING_GAMMA or not options.bootstrap_time_limits):
        raise SystemExit(
            f"--reward progress is shaped for gamma={SHAPING_GAMMA} and bootstrap_time_limits=True, and training has "
            f"gamma={options.gamma} and bootstrap_time_limits={options.bootstrap_time_limits}: shaping would change "
            f"what is optimal. Add --gamma {SHAPING_GAMMA} --bootstrap-time-limits."
        )
    process: dict[str, Any] = {}
    if options.reward == "process":
        process = {"reward_model": options.reward_model}
        process["reward_kwargs"] = {
            "mode": options.reward_mode,
            "weight": options.reward_weight,
            "gamma": options.gamma,
            "bootstrap_time_limits": options.bootstrap_time_limits,
        }
    env = make_vec_env(
        options.env_id,
        options.n_envs,
        task_id=parse_ids(options.task_ids) or None,
        init_state_ids=parse_ids(options.init_states) or None,
        placement_seeds=range(options.n_placements),
        model=options.model,
        reward=options.reward,
        **process,
        renderer=options.renderer,
        physics=options.physics,
        max_episode_steps=options.max_episode_steps or None,
        privileged=options.privileged_critic,
        seed=options.seed,
        render_mode="rgb_array",
    )
    policy_kwargs: dict[str, Any] = {"model": options.model, "temperature": options.temperature}
    policy_kwargs["detach_value"] = options.detach_value
    if options.gradient_checkpointing:
        policy_kwargs["gradient_checkpointing"] = True
    if options.lora_rank:
        lora = {"r": options.lora_rank, "alpha": options.lora_rank // 2, "target": options.lora_target}
        policy_kwargs["lora"] = lora
    arguments: dict[str, Any] = {
        "learning_rate": options.learning_rate,
        "value_learning_rate": options.value_learning_rate,
        "n_steps": options.n_steps,
        "batch_size": options.batch_size,
        "n_epochs": options.n_epochs,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gamma": options.gamma,
        "gae_lambda": options.gae_lambda,
        "value_gae_lambda": options.value_gae_lambda,
        "n_value_epochs": options.n_value_epochs,
        "ratio_level": options.ratio_level,
        "target_kl": options.target_kl or None,
        "kl_ref_coef": options.kl_ref_coef,
        "critic_warmup_iterations": options.critic_warmup_iterations,
        "policy_warmup_iterations": options.policy_warmup_iterations,
        "bootstrap_time_limits": options.bootstrap_time_limits,
        "policy_kwargs": policy_kwargs,
        "seed": options.seed,
    }
    if options.resume is None:
        return env, VLAPPO("VLAPolicy", env, device=options.device, **arguments)
    path = latest_run(options.resume)
    model = VLAPPO.load(path, env, options.device, allow_changes=options.allow_changes, **arguments)
    print(f"Going on from {path}, {model.num_timesteps} of {options.total_timesteps} steps done")
    return env, model


def evaluation(options: Options) -> EvaluationCallback:
    """Looks at the policy as evaluations do, but for the renderer, and keeps the best."""
    return EvaluationCallback(
        options.env_id,
        eval_freq=options.eval_freq,
        folder=options.out,
        task_ids=parse_ids(options.task_ids) or None,
        init_state_ids=(),
        placement_seeds=range(options.n_placements, options.n_placements + options.n_eval_placements),
        protocol="training",
        renderer=options.renderer,
        physics=options.physics,
        max_episode_steps=options.max_episode_steps or None,
        n_envs=options.n_envs,
    )


def make_logger(folder: Path, num_timesteps: int) -> Logger:
    """Where metrics go; a resumed run writes new files beside those before."""
    suffix = f"_from_{num_timesteps}" if num_timesteps else ""
    formats = ("stdout", "csv", "tensorboard")
    return Logger(str(folder), [make_output_format(name, str(folder), suffix) for name in formats])


def note_training_states(options: Options) -> None:
    """So that evaluations of the run can tell seen initial states from unseen ones."""
    suite, states = describe_suite(options.env_id).name, parse_ids(options.init_states) or range(50)
    started_from = read_training_states(resolve_folder(options.model, weights=False))
    write_training_states(options.out / "model", suite, states, started_from)


def film_episode(env: VecEnv, model: VLAPPO, path: Path) -> None:
    """One greedy episode of the first environment as an MP4, from the frames that the policy saw."""
    obs, frames = env.reset(), []
    done = False
    while not done:
        frames.append(obs["image"][0])
        actions, _ = model.predict(obs, deterministic=True)
        obs, _, dones, _ = env.step(actions)
        done = bool(dones[0])
    enlarged = np.stack(frames).repeat(2, axis=1).repeat(2, axis=2)
    iio.imwrite(path, enlarged, fps=20 * 7 / env.action_space.shape[0])  # one frame per chunk of control steps


def main(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    env, model = build(options)
    model.set_logger(make_logger(options.out, model.num_timesteps))
    print(f"Ready after {time.perf_counter() - start:.0f} s; training on {model.device}, logs in {options.out}")

    success = Curriculum(options.curriculum, options.curriculum_tau)  # type: ignore[arg-type]
    curve = LearningCurve(options.out / "curve.png")
    callbacks = [success, curve, RunCheckpoints(options.out, every=options.checkpoint_every)]
    if options.eval_freq:
        callbacks.append(evaluation(options))
    ended = safe_learn(
        model,
        options.total_timesteps - model.num_timesteps,
        options.out,
        callbacks,
        progress_bar=True,
        reset_num_timesteps=options.resume is None,
    )
    if not ended:
        print(f"Stopped. The same command with --resume {options.out} goes on as if it had not been.")
        return
    model.save(options.out / "model")
    note_training_states(options)
    film_episode(env, model, options.out / "episode.mp4")
    env.close()

    returns = [episode.episode_return for episode in success.history]
    rates = ", ".join(f"{task}: {rate:.0%}" for task, rate in success.success_rates.items())
    print(f"{len(returns)} episodes, mean return {np.mean(returns):.3f}" if returns else "No episode ended.")
    print(f"Success by task: {rates}\nWrote model/, curve.png, episode.mp4 and logs into {options.out}")


def parse_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Options):
        kind = Path if "Path" in str(field.type) else type(field.default)
        action: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **action)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse_options())
