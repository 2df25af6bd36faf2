"""Train an agent: demonstrations -> pretraining -> online RL, with evaluation and checkpoints on the way.

    python train.py                                            the starter: eight tasks through the whole recipe
    python train.py --tasks all                                all 200 training tasks
    python train.py --tasks walker-walk --demos none           one task from scratch
    python train.py --tasks mw-door-lock --ckpt runs/starter/agent.safetensors     finetune a saved agent
    python train.py --resume runs/starter                      go on after a kill; on a CPU bit for bit the same
    torchrun --nproc-per-node 8 train.py --tasks all           several GPUs or machines (distributed.py)

Read it from `run` on: get ready (prepare.py), pretrain, then the online loop, in which the learner updates while the
simulators step. What is learned is in losses.py, every setting in train_config.py.
A run folder holds config.json, metrics.jsonl (one line per event), TensorBoard events, curves.png, videos/,
agent.safetensors (newest weights) and checkpoints/. A checkpoint is complete or absent, and the environments start
afresh at each one, in an uninterrupted run too: that is what makes resuming exact.
Ctrl-C, SIGTERM and SIGHUP write a checkpoint first; such a run goes on from there, its unfinished episodes dropped.
Every process of a distributed run comes through here; only rank 0 prints, logs and draws.
Steps are agent steps. "step" in every file counts them over all environments, as published.
Test: pytest tests/test_train.py tests/test_faults.py
"""

import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass

import machine  # noqa: F401  refuses a Python that lacks the packages below

import command
import envs
from train_config import Setup, parse

if __name__ == "__main__":
    given = command.start(parse, sys.argv[1:])
    if os.environ.get("RANK", "0") == "0":  # as torchrun counts
        print(f"{len(given.tasks)} tasks, {given.cfg.why}; loading torch and the simulators", flush=True)

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import distributed
import eval as evaluation
import losses
import newt
import observe
import run_folder
import tables
from buffer import Batch, Collector, sample_mixed
from clock import describe
from distributed import World
from envs.vector import Step
from episodes import Policy, evaluate
from intervals import interval
from metrics import plot_curves
from prepare import Run, prepare, warn_if_clipped


def main(setup: Setup) -> None:
    interruption = command.Interruption()
    folder, overwrite = setup.cfg.folder, setup.cfg.overwrite
    try:
        world = distributed.join()
        # torchrun starts all processes again with the same words after one was lost, which means: go on. Only the
        # machine that lost it counts a restart. A run with other settings in the folder is not the one that was lost.
        again = distributed.any_of(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        if again and not setup.cfg.resume and run_folder.is_run(folder):
            asked = {"compile": setup.cfg.compile, "precision": setup.cfg.precision}  # "auto" has been decided there
            known = run_folder.read_config(folder) | asked
            if known == run_folder.as_stored(asdict(setup.cfg)):
                setup = parse(["--resume", str(folder), "--tasks", setup.cfg.tasks])
        resume = bool(setup.cfg.resume)
        claim = run_folder.claim(folder, resume, overwrite) if world.rank == 0 else nullcontext()
        with claim:
            distributed.gather(None)  # the folder is in order
            run(setup, world, interruption)
    except FloatingPointError as error:
        raise RuntimeError(
            f"{error} is not finite: the step was not taken, the last checkpoint in {folder} is kept. Lower --lr "
            "or --grad-clip"
        ) from error
    finally:
        distributed.leave()
        interruption.restore()


def run(setup: Setup, world: World, interruption: command.Interruption) -> None:
    """The whole story. A checkpoint always comes before the evaluation of the same agent: a run that is killed while
    evaluating, which may take longer than training, does that again and nothing else."""
    r = prepare(setup, world, interruption)
    cfg, state = r.setup.cfg, r.state
    if "random" not in state.results:
        state.results["random"] = measure(r, "random", cfg.final_episodes, "random policy")
    if complaint := r.compiling():
        print(f"not compiled, everything goes on without ({complaint})", file=sys.stderr)
    if state.phase == "pretrain":
        if r.demo is not None and cfg.offline_updates:
            pretrain(r)
            state.results["pretrained"] = measure(r, "planner", cfg.final_episodes, "after pretraining")
        state.phase, state.updates = "online", 0
        save(r, "0")
    learn_online(r)
    state.results["online"] = measure(r, "planner", cfg.final_episodes, "after online")
    if world.rank == 0:
        show(r)


# ---------------------------------------------------------------- learning


def learn(r: Run, phase: losses.Phase) -> dict[str, torch.Tensor]:
    """One update on a batch, half of it demonstrations where both are there."""
    cfg, agent, world = r.setup.cfg, r.agent, r.world
    source = (r.demo, r.online) if phase == "online" else (r.demo, None)
    size, horizon = losses.slices(agent.cfg, phase)
    batch = sample_mixed(*source, size // world.size, horizon, r.own.sampler, cfg.sampling)
    pinned = r.device.type == "cuda"  # from such memory the copy is made while this process goes on
    batch = Batch(*((x.pin_memory() if pinned else x).to(r.device, non_blocking=pinned) for x in batch))
    lr_scale = 1 + (cfg.lr_end - 1) * r.state.vector_step / cfg.steps  # vector_step is 0 in pretraining
    if phase == "imitate":
        lr_scale = 1 - 0.95 * r.state.updates / cfg.imitation_updates
    r.state.updates += 1
    return newt.update(agent, batch, phase, None, lr_scale, world.rank, world.size)


def pretrain(r: Run) -> None:
    """Updates on demonstrations alone: imitation first, then the whole model."""
    cfg, state, clock = r.setup.cfg, r.state, r.clock
    bar = tqdm(desc="pretraining", unit="update", initial=state.updates, total=cfg.offline_updates,
               disable=None if r.world.rank == 0 else True)  # fmt: skip
    with r.interruption, bar:
        while state.updates < cfg.offline_updates:
            if state.updates == cfg.imitation_updates:
                r.agent.updates = 0  # another phase, another warm-up
            with clock("update"):
                metrics = learn(r, "imitate" if state.updates < cfg.imitation_updates else "pretrain")
            clock.done += 1
            bar.update()
            last = state.updates == cfg.offline_updates
            if state.updates % cfg.log_every == 0 or last:
                took = clock.look("updates", cfg.offline_updates - state.updates)
                with clock("log"):
                    r.log.write(0, **metrics, **took, **{"train/pretrain_updates": state.updates})
            if state.updates % cfg.checkpoint_updates == 0 or last:
                with clock("log"):
                    save(r, f"pretrain-{state.updates}")
            stop_if_asked(r, f"pretrain-{state.updates}")


@dataclass
class Acting:
    """The environments of this process, and what the next decisions start from."""

    names: list[str]  # task of each environment
    task: torch.Tensor  # its place among the run's tasks
    collector: Collector  # unfinished episodes
    trained: bool  # else the policy is no better than chance
    obs: np.ndarray | None = None
    first: torch.Tensor | None = None  # where an episode begins
    warm: torch.Tensor | None = None  # plans to start from
    seeding: bool = True


def learn_online(r: Run) -> None:
    """Act in all environments at once, and learn while they step."""
    cfg, state, clock, agent_cfg = r.setup.cfg, r.state, r.clock, r.agent.cfg
    names = [name for name in r.mine for _ in range(cfg.envs_per_task)]
    task = torch.tensor([r.setup.tasks.index(name) for name in names], device=r.device)
    longest = max(envs.TASKS[name].episode_length for name in r.setup.tasks)
    collector = Collector(len(names), longest, agent_cfg.input_dim, agent_cfg.action_dim, task.cpu().numpy())
    acting = Acting(names, task, collector, bool(cfg.ckpt or (r.demo is not None and cfg.offline_updates)))
    with (
        r.interruption,
        observe.environments(r.agent, names, cfg.seed, r.workers) as vector,
        tqdm(total=cfg.steps * r.environments, initial=r.step, desc="online", unit="step", unit_scale=True,
             disable=None if r.world.rank == 0 else True) as bar,
    ):  # fmt: skip
        clock.restart()
        fresh = True
        while state.vector_step < cfg.steps:
            if fresh:
                begin_episodes(r, acting, vector)
            with clock("plan"):
                action = decide(r, acting)
            vector.send(action)
            learn_what_is_due(r, acting, bar)
            with clock("wait"):
                result = vector.recv()
            keep(r, acting, action, result)
            state.vector_step += 1
            clock.done += r.environments
            bar.update(r.environments)
            fresh = state.vector_step % cfg.eval_every == 0
            if fresh or state.vector_step == cfg.steps:
                with clock("log"):
                    save(r, str(r.step))
            stop_if_asked(r, str(r.step))


def begin_episodes(r: Run, acting: Acting, vector: observe.VectorEnv | observe.Seeing) -> None:
    """At the start and after every checkpoint all environments begin new episodes; an evaluation comes before."""
    cfg, agent_cfg, count = r.setup.cfg, r.agent.cfg, len(acting.names)
    if r.state.vector_step and r.state.vector_step % cfg.eval_every == 0:
        r.interruption.patient = False  # the checkpoint is written
        measure(r, "planner", cfg.eval_episodes, "evaluate")
        r.interruption.patient = True
    acting.obs = vector.reset(episode=r.state.vector_step)
    acting.collector.start(acting.obs)
    acting.first = torch.ones(count, dtype=torch.bool, device=r.device)
    acting.warm = torch.zeros(count, agent_cfg.horizon, agent_cfg.action_dim, device=r.device)


def decide(r: Run, acting: Acting) -> np.ndarray:
    """Actions (B, A): planned, but in the first episodes of each task the policy's, or chance if it's untrained."""
    cfg, state, own = r.setup.cfg, r.state, r.own
    if acting.seeding:
        due = cfg.seed_episodes * cfg.envs_per_task  # lost ones count: one bad simulator holds up nobody
        # Own tasks may end at once, so they are counted in steps: as many as so many long episodes have.
        had = min(
            (state.vector_step // envs.TASKS[name].episode_length * cfg.envs_per_task if ":" in name
             else own.episodes.get(name, 0)) + own.dropped.get(name, 0) for name in r.mine
        )  # fmt: skip
        acting.seeding = distributed.any_of(had < due or not r.online.episodes)
    if acting.seeding and not acting.trained:
        shape = len(acting.names), r.agent.cfg.action_dim
        return (torch.rand(*shape, generator=own.sampler) * 2 - 1).mul(r.agent.mask[acting.task].cpu()).numpy()
    plan = newt.act(
        r.agent, torch.as_tensor(acting.obs, device=r.device), acting.task, acting.warm, acting.first, r.step,
        explore=True, use_planner=not acting.seeding, generator=own.actor,
    )  # fmt: skip
    acting.warm = plan.mean
    return plan.action.cpu().numpy()


def learn_what_is_due(r: Run, acting: Acting, bar: tqdm) -> None:
    """Updates for the steps that were taken so far; none while seeding."""
    cfg, state, clock, left = r.setup.cfg, r.state, r.clock, r.left
    if acting.seeding:
        if clock.done >= cfg.log_every * r.environments:
            r.log.write(r.step, **clock.look("steps", left))
        return
    state.learning_steps += r.environments
    while state.updates < int(cfg.utd * state.learning_steps):
        with clock("update"):
            metrics = learn(r, "online")
        if state.updates % cfg.log_every == 0:
            took = clock.look("steps", left)
            with clock("log"):
                r.log.write(r.step, **metrics, **took, **{"train/updates": state.updates})
            shown = {what: f"{took[f'time/{what}']:.0%}" for what in ("plan", "update", "wait")}
            bar.set_postfix(loss=f"{float(metrics['loss/model']):.2f}", **shown, refresh=False)


def keep(r: Run, acting: Acting, action: np.ndarray, result: Step) -> None:
    """Put what came of the actions into replay, and note the episodes that ended."""
    own, names, after = r.own, acting.names, r.step + r.environments
    rows = (action, result.reward, result.done, result.final_obs, result.obs, result.dropped, result.terminated)
    for i, ret, length in acting.collector.add(r.online, *rows):
        own.episodes[names[i]] = own.episodes.get(names[i], 0) + 1
        warn_if_clipped(r, names[i], acting.collector.rewards(i, length))
        said = {"return": ret, "score": result.score[i]} | ({"length": length} if ":" in names[i] else {})
        r.log.note(after, **{f"train/{names[i]}/{key}": value for key, value in said.items()})
    for i in np.flatnonzero(result.dropped):
        own.dropped[names[i]] = own.dropped.get(names[i], 0) + 1
        r.log.note(after, **{f"train/{names[i]}/dropped": own.dropped[names[i]]})
    acting.obs, acting.first = result.obs, torch.as_tensor(result.done | result.dropped, device=r.device)


# ---------------------------------------------------------------- measuring, saving, the end


def measure(r: Run, policy: Policy, episodes: int, title: str) -> dict[str, list[tuple]]:
    """Evaluate all tasks, each in the process that has it: task -> episodes."""
    cfg, tasks = r.setup.cfg, r.setup.tasks
    played = evaluate(r.agent, r.mine, episodes, cfg.seed, policy, r.step, r.workers, title)
    played = {task: rows for part in distributed.gather(played) for task, rows in part.items()}
    played = {task: played[task] for task in tasks}
    values = {}
    for task, rows in played.items():
        for key in ("ret", "success", "score") + ("length",) * (":" in task):
            found = interval([getattr(e, key) for e in rows], rate=key in ("success", "score"))
            values[f"eval/{task}/{key}"], values[f"eval/{task}/{key}_interval"] = found.mean, found.half
    scores = [values[f"eval/{task}/score"] for task in tasks]
    r.log.write(r.step, **values, **{"eval/score": tables.mean_of_defined(scores)})
    r.clock.restart()
    return {task: [e[:4] for e in rows] for task, rows in played.items()}


def save(r: Run, name: str) -> None:
    """A checkpoint; and a line that says how far it is, in logs, which have no bar."""
    state, looked = r.state, r.clock.looked
    r.log.write(r.step, durable=True)
    state.log_size = r.log.size
    checkpoint.save(r.setup.cfg.folder, name, r.agent, state, r.own, r.online, r.step, r.world)
    unit, done = ("update", state.updates) if state.phase == "pretrain" else ("step", r.step)
    if r.world.rank == 0 and not sys.stderr.isatty() and (rate := looked.get(f"time/{unit}s_per_s")):
        left = describe(looked["time/hours_left"])
        print(f"{state.phase}: {done} {unit}s, {rate:.1f} {unit}/s, {left} left", file=sys.stderr)


def stop_if_asked(r: Run, name: str) -> None:
    """SystemExit after a checkpoint, if Ctrl-C, SIGTERM or SIGHUP came to any of the processes."""
    if distributed.any_of(bool(r.interruption.code)):
        save(r, name)
        if r.world.rank == 0:
            cfg = r.setup.cfg
            named = f" --tasks {cfg.tasks}" if ":" in cfg.tasks else ""
            with suppress(OSError):  # the terminal may be gone
                print(f"stopped; go on with: python train.py --resume {cfg.folder}{named}", file=sys.stderr)
        raise SystemExit(r.interruption.code or 1)


def show(r: Run) -> None:
    """The table, the curves, the film."""
    folder = r.setup.cfg.folder
    plot_curves(folder / "metrics.jsonl", folder / "curves.png")
    print(tables.compare(r.state.results))
    print(f"curves {folder / 'curves.png'}\nagent  {folder / 'agent.safetensors'}")
    try:
        path = folder / "videos" / "final.mp4"
        evaluation.record(r.agent, r.setup.tasks[:16], path, r.setup.cfg.seed, r.step)
        print(f"video  {path}")
    except Exception as error:  # of OpenGL, of a simulator, of a disk that is full: training is done all the same
        print(f"no video: {error}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main, given)
