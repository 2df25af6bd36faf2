"""Train an agent: demonstrations -> pretraining -> online RL, with evaluation and checkpoints on the way.

    python train.py                                            the starter: eight tasks through the whole recipe
    python train.py --tasks all                                all 200 training tasks
    python train.py --tasks walker-walk --demos none           one task from scratch
    python train.py --tasks mw-door-lock --ckpt runs/starter/agent.safetensors     finetune a saved agent
    python train.py --resume runs/starter                      go on after a kill; on a CPU bit for bit the same
    torchrun --nproc-per-node 8 train.py --tasks all           several GPUs or machines (distributed.py)

Read it from `run` on: get ready (check everything, make what is missing), pretrain, then the online loop, in which the
learner updates while the simulators step. What is learned is in newt.py, every setting in train_config.py.
A run folder holds config.json, metrics.jsonl (one line per event), TensorBoard events, curves.png, videos/,
agent.safetensors (newest weights) and checkpoints/. A checkpoint is complete or absent, and the environments start
afresh at each one, in an uninterrupted run too: that is what makes resuming exact.
Ctrl-C, SIGTERM and SIGHUP write a checkpoint first; such a run goes on from there, its unfinished episodes dropped.
Every process of a distributed run comes through here; only rank 0 prints, logs and draws.
Steps are agent steps. "step" in every file counts them over all environments, as published.
Test: pytest tests/test_train.py
"""

import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import machine

import command
import demo_format
import demo_maker
import envs
from train_config import PUBLISHED, Setup, Train, check, demo_folder, fit, inputs, made_here, parse

if __name__ == "__main__":
    given = command.start(parse, sys.argv[1:])
    if os.environ.get("RANK", "0") == "0":  # as torchrun counts
        print(f"{len(given.tasks)} tasks, {given.cfg.why}; loading torch and the simulators", flush=True)

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import torch
from tqdm import tqdm

import agent_file
import checkpoint
import distributed
import eval as evaluation
import language
import newt
import run_folder
from buffer import Batch, Buffer, Collector, sample_mixed
from clock import Clock, describe, estimate
from distributed import World
from envs.vector import STEP_MS, Step, VectorEnv
from metrics import Log, plot_curves

DECISION_MS = 2.0  # besides STEP_MS, what a task costs the process that owns it: only for sharing tasks out


@dataclass
class Run:
    """What the phases of a run work on; all but `state`, `own` and what agent and buffers hold stays as it is."""

    setup: Setup
    world: World
    device: torch.device
    workers: int
    agent: newt.Agent
    state: checkpoint.State  # counters, the same in every process
    own: checkpoint.Own  # counters and random streams of this one
    mine: list[str]  # tasks of this process
    demo: Buffer | None  # demonstrations of these
    online: Buffer
    log: Log
    interruption: command.Interruption
    clock: Clock = field(default_factory=Clock)
    clipped: set[str] = field(default_factory=set)  # tasks that were warned of

    @property
    def environments(self) -> int:
        """Of all processes."""
        return len(self.setup.tasks) * self.setup.cfg.envs_per_task

    @property
    def step(self) -> int:
        """Environment steps so far, of all processes."""
        return self.state.vector_step * self.environments

    @property
    def left(self) -> int:
        return self.setup.cfg.steps * self.environments - self.step


def main(setup: Setup) -> None:
    interruption = command.Interruption()
    folder, overwrite = setup.cfg.folder, setup.cfg.overwrite
    try:
        world = distributed.join()
        # torchrun starts all processes again with the same words after one was lost, which means: go on. Only the
        # machine that lost it counts a restart. A run with other settings in the folder is not the one that was lost.
        again = distributed.any_of(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        if again and not setup.cfg.resume and run_folder.is_run(folder):
            if run_folder.read_config(folder) == run_folder.as_stored(asdict(setup.cfg)):
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
    cfg, state = setup.cfg, r.state
    if "random" not in state.results:
        state.results["random"] = measure(r, "random", cfg.final_episodes, "random policy")
    if state.phase == "pretrain":
        if r.demo is not None and cfg.pretrain_updates:
            pretrain(r)
            state.results["pretrained"] = measure(r, "planner", cfg.final_episodes, "after pretraining")
        state.phase, state.updates = "online", 0
        save(r, "0")
    learn_online(r)
    state.results["online"] = measure(r, "planner", cfg.final_episodes, "after online")
    if world.rank == 0:
        show(r)


# ---------------------------------------------------------------- getting ready


def fill(buffer: Buffer, files: dict[str, demo_format.Demos], tasks: list[str], episodes: int) -> None:
    """Add the first `episodes` demonstrations of each task."""
    for name, demo in files.items():
        ends = zip(demo.episode_start[:-1], demo.episode_start[1:], demo.terminated, strict=True)
        for first, end, terminated in list(ends)[:episodes]:
            rows = slice(int(first), int(end))
            buffer.add(demo.obs[rows], demo.action[rows], demo.reward[rows], tasks.index(name), terminated)


def create_agent(setup: Setup, device: torch.device) -> newt.Agent:
    """A fresh agent, or the saved one's network with this run's tasks and embeddings."""
    cfg, tasks, shown = setup
    rows = [envs.TASKS[name] for name in tasks]
    settings, params, q_scale = cfg.agent, None, 1.0
    if cfg.ckpt:
        source, _ = agent_file.load(cfg.ckpt, device)
        # The network's shape is the checkpoint's; how to learn and to plan is this run's.
        shape = {name: getattr(source.cfg, name) for name in ("size", "obs_dim", "action_dim", "task_dim", "num_bins")}
        settings, params, q_scale = replace(settings, **shape), source.params, float(source.q_scale)
    small = [f"{name} is {getattr(settings, name)}, these tasks need {needed}" for name, needed in inputs(rows).items()
             if getattr(settings, name) < needed]  # fmt: skip
    if small:
        raise ValueError(f"{cfg.ckpt}: " * bool(cfg.ckpt) + "; ".join(small))
    emb = torch.zeros(len(tasks), 0)
    if cfg.ckpt and settings.task_dim not in (0, language.DIM):  # published agents: language.py can't make such
        unknown = [name for name in tasks if name not in source.tasks]
        if unknown or cfg.instruction:
            raise ValueError(
                f"{cfg.ckpt} reads embeddings of {settings.task_dim} numbers, which can't be made here: it can only be "
                f"finetuned on its own tasks and instructions, not on {', '.join(unknown) or 'another instruction'}"
            )
        emb = source.emb[[source.tasks.index(name) for name in tasks]]
    elif settings.task_dim:
        if cfg.instruction:
            language.embed([cfg.instruction])  # words by themselves, too, which blanks behind an embodiment aren't
        emb = language.embed([f"{row.embodiment}. {cfg.instruction or row.instruction}." for row in rows])
    dims, discounts = [row.action_dim for row in rows], [row.discount for row in rows]
    guided = [cfg.guide == "all" or bool(cfg.ckpt) or name in shown for name in tasks]
    return newt.create(settings, tasks, emb, dims, discounts, cfg.seed, device, params, q_scale, guided)


def prepare(setup: Setup, world: World, interruption: command.Interruption) -> Run:
    """Check all, say what will happen, make demonstrations that are missing, fill replay.

    A resumed run goes on from its newest checkpoint, with the demonstrations that it began with.
    """
    cfg, tasks, paths = setup
    check(setup, world.size, world.local_size)
    envs.require_real_assets(cfg.require_real_assets)
    device = evaluation.pick_device(cfg.device)
    workers = cfg.workers or max(1, machine.cores() // world.local_size)
    seeds = np.random.SeedSequence([cfg.seed, world.rank]).generate_state(2)
    own = checkpoint.Own(
        torch.Generator().manual_seed(int(seeds[0])), torch.Generator(device=device).manual_seed(int(seeds[1]))
    )
    if cfg.resume:
        agent, state = checkpoint.load(cfg.folder, device, own, world)
        if agent.tasks != tuple(tasks):
            raise ValueError(f"the newest checkpoint in {cfg.folder} is of other tasks than its config.json")
        files, moved = checkpoint.find_demos(cfg.folder, state.demos, demo_folder(cfg.demos))
    else:
        agent, state, moved = create_agent(setup, device), checkpoint.State(phase="pretrain"), ""
        files = {name: demo_format.load(path, name) for name, path in paths.items() if path.is_file()}
    evaluation.share_cores(agent.cfg.size)
    announce(setup, agent, world, workers, moved)

    if not cfg.resume:
        files |= make_demos(cfg, paths, world)
        state.demos = {name: file.ret[: cfg.demo_episodes].tolist() for name, file in files.items()}
    without = [name for name in tasks if name not in files]
    if files and without and world.rank == 0:
        print(f"no demonstrations of {', '.join(without)}: online only (`python demos.py make --tasks ...` makes some)")
    if 0 < len(files) < world.size:
        raise ValueError(f"{len(files)} tasks with demonstrations can't be shared out among {world.size} processes")
    cost = [STEP_MS.get(envs.TASKS[name].domain, 1.0) + DECISION_MS for name in tasks]
    mine = distributed.share_out(tasks, list(files), cost, world.size)[world.rank]
    own_files = {name: file for name, file in files.items() if name in mine}

    online = Buffer(cfg.buffer_steps // world.size, agent.cfg.obs_dim, agent.cfg.action_dim)
    demo = None
    if own_files:
        rows = sum(int(file.episode_start[-1]) for file in own_files.values())
        demo = Buffer(rows, agent.cfg.obs_dim, agent.cfg.action_dim)
        fill(demo, own_files, tasks, cfg.demo_episodes)
    if cfg.resume:
        checkpoint.load_buffer(cfg.folder, online, own, world, len(tasks))
    else:
        fill(online, own_files, tasks, cfg.demo_episodes)
        checkpoint.begin(cfg.folder, asdict(cfg), paths, files, agent, state, own, online, world)
    log = Log(cfg.folder, state.log_size, state.vector_step * len(tasks) * cfg.envs_per_task, world)
    if cfg.resume and world.rank == 0:  # the next --resume, without words, must not end where this run was first to end
        run_folder.set_steps(cfg.folder, cfg.steps)
    if not state.log_size:  # also where a run was killed before its first lines were safe
        log.write(0, **{f"demo/{name}/{key}": np.mean(getattr(file, key)[: cfg.demo_episodes])
                        for name, file in files.items() for key in ("ret", "score")})  # fmt: skip
    r = Run(setup, world, device, workers, agent, state, own, mine, demo, online, log, interruption)
    for name, file in own_files.items():
        for start, end in zip(file.episode_start[:-1] + 1, file.episode_start[1:], strict=True):
            warn_if_clipped(r, name, file.reward[start:end])
    return r


def announce(setup: Setup, agent: newt.Agent, world: World, workers: int, moved: str) -> None:
    """Print what will happen, with all settings as they were chosen, and how long it will take."""
    cfg, n = setup.cfg, len(setup.tasks) * setup.cfg.envs_per_task
    hours = estimate(agent, cfg.steps, n, cfg.utd) / world.size
    if world.rank:
        return
    together = f", {world.size} processes" if world.size > 1 else ""
    size = newt.wm.num_params(agent.params) / 1e6
    print(f"{len(setup.tasks)} tasks, {n} environments, {size:.1f}M parameters, {agent.device}{together}")
    print(f"settings: {cfg.why}" if cfg.why else "settings:")
    for name, value in {**asdict(cfg), **asdict(agent.cfg), "device": agent.device, "workers": workers}.items():
        if name not in ("agent", "why"):
            print(f"  {name:20} {value}")
    print(f"acting and learning online will take about {describe(hours)} here; everything is written to {cfg.folder}/")
    if moved:
        print(moved)
    if cfg.preset == "laptop" and agent.device.type != "cuda" and len(setup.tasks) > 20:
        full = fit(replace(PUBLISHED, tasks=cfg.tasks), PUBLISHED)
        weeks = estimate(create_agent(Setup(full, setup.tasks, setup.demos), agent.device), full.steps, n, full.utd)
        print(f"(preset laptop; the published preset would take about {describe(weeks)} here: use a GPU for that)")


def make_demos(cfg: Train, paths: dict[str, Path], world: World) -> dict[str, demo_format.Demos]:
    """Those that are recorded or played by scripts. What is there already isn't made again."""
    here = [name for name in paths if made_here(cfg.demos, name)]
    if world.rank == 0:
        demo_maker.make_all(here, cfg.demo_episodes, demo_folder(cfg.demos), cfg.seed, cfg.workers or None)
    distributed.gather(None)
    return {name: demo_format.load(paths[name], name) for name in here if paths[name].is_file()}


# ---------------------------------------------------------------- learning


def learn(r: Run, phase: newt.Phase) -> dict[str, torch.Tensor]:
    """One update on a batch, half of it demonstrations where both are there."""
    cfg, agent, world = r.setup.cfg, r.agent, r.world
    source = (r.demo, r.online) if phase == "online" else (r.demo, None)
    size = agent.cfg.batch_size // world.size
    batch = sample_mixed(*source, size, agent.cfg.horizon, r.own.sampler, cfg.sampling)
    batch = Batch(*(x.to(r.device) for x in batch))
    lr_scale = 1 + (cfg.lr_end - 1) * r.state.vector_step / cfg.steps  # vector_step is 0 in pretraining
    r.state.updates += 1
    return newt.update(agent, batch, phase, None, lr_scale, world.rank, world.size)


def pretrain(r: Run) -> None:
    """Updates on demonstrations alone."""
    cfg, state, clock = r.setup.cfg, r.state, r.clock
    bar = tqdm(desc="pretraining", unit="update", initial=state.updates, total=cfg.pretrain_updates,
               disable=None if r.world.rank == 0 else True)  # fmt: skip
    with r.interruption, bar:
        while state.updates < cfg.pretrain_updates:
            with clock("update"):
                metrics = learn(r, "pretrain")
            clock.done += 1
            bar.update()
            last = state.updates == cfg.pretrain_updates
            if state.updates % cfg.log_every == 0 or last:
                took = clock.look("updates", cfg.pretrain_updates - state.updates)
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
    collector = Collector(len(names), longest, agent_cfg.obs_dim, agent_cfg.action_dim, task.cpu().numpy())
    acting = Acting(names, task, collector, bool(cfg.ckpt or (r.demo is not None and cfg.pretrain_updates)))
    with (
        r.interruption,
        VectorEnv(names, cfg.seed, r.workers, agent_cfg.obs_dim, agent_cfg.action_dim) as vector,
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


def begin_episodes(r: Run, acting: Acting, vector: VectorEnv) -> None:
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


def warn_if_clipped(r: Run, name: str, reward: np.ndarray) -> None:
    value = newt.largest_value(reward, envs.TASKS[name].discount)
    if value > newt.VALUE_LIMIT and name not in r.clipped:
        r.clipped.add(name)
        tqdm.write(f"{name}: values reach {value:,.0f}, but the networks' range ends at {newt.VALUE_LIMIT:,.0f}: "
                   f"what is beyond is clipped; divide its rewards by {value / newt.VALUE_LIMIT * 2:.0f}",
                   file=sys.stderr)  # fmt: skip


# ---------------------------------------------------------------- measuring, saving, the end


def measure(r: Run, policy: evaluation.Policy, episodes: int, title: str) -> dict[str, list[tuple]]:
    """Evaluate all tasks, each in the process that has it: task -> episodes."""
    cfg, tasks = r.setup.cfg, r.setup.tasks
    played = evaluation.evaluate(r.agent, r.mine, episodes, cfg.seed, policy, r.step, r.workers, title)
    played = {task: rows for part in distributed.gather(played) for task, rows in part.items()}
    played = {task: played[task] for task in tasks}
    values = {}
    for task, rows in played.items():
        for key in ("ret", "success", "score") + ("length",) * (":" in task):
            mean, values[f"eval/{task}/{key}_interval"] = evaluation.summarise([getattr(e, key) for e in rows])
            values[f"eval/{task}/{key}"] = mean
    scores = [values[f"eval/{task}/score"] for task in tasks]
    r.log.write(r.step, **values, **{"eval/score": evaluation.mean_of_defined(scores)})
    r.clock.restart()
    return {task: [tuple(e) for e in rows] for task, rows in played.items()}


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
    print(evaluation.compare(r.state.results))
    print(f"curves {folder / 'curves.png'}\nagent  {folder / 'agent.safetensors'}")
    try:
        path = folder / "videos" / "final.mp4"
        evaluation.record(r.agent, r.setup.tasks[:16], path, r.setup.cfg.seed, r.step)
        print(f"video  {path}")
    except Exception as error:  # of OpenGL, of a simulator, of a disk that is full: training is done all the same
        print(f"no video: {error}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main, given)
