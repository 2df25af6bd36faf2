"""Experts: who acts in demonstrations, and one attempt of theirs.

    script   a player beside its suite or game: Meta-World's packaged experts, way-finding, heuristics, feedback; or a
             gait (envs/gaits.py); every second attempt is disturbed, to show the way back
    plan     sampling MPC on the true simulator (envs/mpc.py)
    search   random variations of a plan, with the emulator's own save and restore (envs/atari_search.py)
    agent    an agent of ours, only if asked for; as is module:function, a player of yours

What they did is recorded (recordings.py), and playing that again costs a simulator's time only, so it comes first; a
script goes on where a recording ends. Plans, searches and agents do so only if asked for by name: they take hours.

A player is a generator, player(env, obs, number): it yields actions; `obs, info = yield action` is what came of one.
It may read the simulator's true state but leaves no trace in it; `number`, the attempt's, is its only source of chance.
Attempts are numbered, and number k of a task is always the same episode. Which of them are kept: demo_maker.py.
Test: pytest tests/test_demos.py
"""

import functools
import hashlib
import importlib
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

import envs
import recordings
from demo_format import FORMAT_VERSION, Demos, save
from envs import feedback, gaits, mpc
from envs.atari_search import search_of
from envs.custom import imported
from recordings import Recording

SCRIPTS = {  # how names of tasks begin -> module with their player(env, obs, number)
    "mw-": "envs.metaworld",
    "pygame-": "envs.arcade",
    "og-point-": "envs.ogbench",
    "lunarlander-": "envs.box2d",
    "rd-push-": "envs.robodesk",
    "rd-open-slide": "envs.robodesk",
    "rd-flat-block-in-bin": "envs.robodesk",
    "ms-cartpole-": "envs.maniskill_bodies",
    "ms-anymal-reach": "envs.maniskill_bodies",
    "ms-reach": "envs.maniskill_players",
    "ms-pick-": "envs.maniskill_players",
    "ms-poke-cube": "envs.maniskill_players",
    "ms-push-": "envs.maniskill_players",
    "ms-pull-cube": "envs.maniskill_players",
    "ms-stack-cube": "envs.maniskill_players",
    "ms-place-sphere": "envs.maniskill_players",
    "ms-lift-peg": "envs.maniskill_players",
}
Source = str  # script, plan, search, agent, or module:function
SOURCES = ("script", "plan", "search", "agent")


def source_of(task: str, wanted: str = "auto") -> Source | None:
    """Where demonstrations of a task come from, or None: no source, or not the wanted one."""
    has = {
        "script": script_of(task) is not None,
        "plan": task in mpc.PLANS,
        "search": task.startswith("atari-"),
        "agent": wanted == "agent",
    }
    return wanted if ":" in wanted else next((s for s in has if has[s] and wanted in ("auto", s)), None)


def sources_of(task: str, wanted: str = "auto", seed: int = 0) -> tuple[Recording | None, Source | None]:
    """(what is played again, who goes on after that), either may be None.

    A source that is wanted by name goes on where the recording ends only if that is its own work.
    """
    recorded, own = recordings.of(task), source_of(task, wanted)
    if recorded is None or own is None:
        return (recorded if wanted == "auto" else None), own
    if wanted == "auto":
        return recorded, own if own == "script" else None
    made_by = (recorded.meta.get("source"), recorded.meta.get("settings"), recorded.meta.get("seed"))
    return (recorded if made_by == (own, settings_of(task, own), seed) else None), own


def script_of(task: str) -> str | None:
    """The module that plays a task by a script, if one does."""
    words = [word for word in SCRIPTS if task.startswith(word)]
    named = [module.__name__ for module in (gaits, feedback) if task in module.TASKS]
    return named[0] if named else SCRIPTS[max(words, key=len)] if words else None


def module_of(task: str, source: Source) -> str:
    if source == "script":
        return script_of(task)
    return {"plan": "envs.mpc", "search": "envs.atari_search", "agent": __name__}[source]


def ways_of(task: str, source: Source) -> int:
    """How many ways of acting a player has: the length of its module's WAYS, if it has one. Attempt k is k % ways."""
    return 1 if ":" in source else len(getattr(importlib.import_module(module_of(task, source)), "WAYS", "1"))


def player_of(task: str, source: Source, ckpt: Path | None = None) -> Callable:
    """Who acts: player(env, obs, number). ValueError if a player of yours can't be had."""
    if source == "agent":
        return functools.partial(agent_player, ckpt=ckpt)
    if ":" not in source:
        player = importlib.import_module(module_of(task, source)).player
        return functools.partial(disturbed, player=player, ways=ways_of(task, source)) if source == "script" else player
    try:
        return imported(source)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--source {source} cannot be had: {error}") from error


NOISE = 0.1  # standard deviation, of actions in [-1, 1]


def is_disturbed(number: int, ways: int = 1) -> bool:
    """Is there noise in a script's attempt of this number?"""
    return number // ways % 2 == 1


def disturbed(env, obs, number: int, player: Callable, ways: int = 1):
    """A script's actions, with noise in every second attempt of each of its ways.

    A script's own path is narrow, and who imitates it leaves it with the first small mistake. Disturbed, it shows the
    way back; the noise itself has mean 0 and is not imitated. Who imitates little gains by it (six tasks, 25 and 25
    episodes against 50 undisturbed: score 0.67 against 0.52), who imitates well doesn't need it (fifteen tasks, 20,000
    updates of imitation alone: 0.72 against 0.73). Source: DART (Laskey et al. 2017, arXiv 1703.09327).
    """
    script, chance = player(env, obs, number), np.random.default_rng([number, 1])
    noise, action = NOISE * is_disturbed(number, ways), next(script)
    while True:
        action = np.clip(action, -1, 1)
        action = script.send((yield action + noise * chance.standard_normal(np.shape(action))))


def agent_player(env, obs, number: int, ckpt: Path):
    """Yields the actions of an agent of ours that plans; env: of a task that it knows."""
    import torch

    import newt
    import observe

    agent = agent_of(ckpt)
    cfg, task = agent.cfg, torch.tensor([agent.tasks.index(env.name)])
    generator, mean = torch.Generator().manual_seed(number), torch.zeros(1, cfg.horizon, cfg.action_dim)
    first = torch.ones(1, dtype=torch.bool)
    while True:
        plan = newt.act(agent, observe.padded(agent, env, obs), task, mean, first, generator=generator)
        mean, first = plan.mean, torch.zeros_like(first)
        obs, _ = yield plan.action[0, : env.action_space.shape[0]].numpy()


def recorded_player(env, obs, number: int, actions: np.ndarray):
    """Yields what was recorded (T, A), whatever comes of it."""
    for action in actions:  # noqa: UP028 (what is sent to a `yield from` would go to the array)
        yield action


@functools.cache
def agent_of(ckpt: Path):
    import torch

    import agent_file
    import observe

    torch.set_num_threads(1)  # one process per core is there already
    agent = agent_file.load(ckpt, torch.device("cpu"))[0]
    agent.eyes = observe.open_eyes(agent.cfg, None, agent.device)
    return agent


@functools.lru_cache(maxsize=1)
def _environment(task: str):
    """Kept from one attempt to the next: some take a second to make."""
    return envs.make(task)


def play(env, player, seed: int, number: int) -> Demos:
    """One episode from reset(seed=): player(env, obs, number) acts."""
    obs, info = env.reset(seed=seed)
    rows, actions, rewards = [obs], [np.full(env.action_space.shape, np.nan)], [np.nan]
    script, terminated, truncated = player(env, obs, number), False, False
    action = next(script)
    while not (terminated or truncated):
        action = np.clip(action, -1, 1).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        rows.append(obs), actions.append(action), rewards.append(reward)
        if not (terminated or truncated):
            action = script.send((obs, info))
    arrays = [np.asarray(x, dtype=np.float32) for x in (rows, actions, rewards)]
    ends = [np.array([x], np.float32) for x in (np.nansum(arrays[2]), info["success"], info["score"])]
    meta = {"terminated": [True]} if terminated else {}
    return Demos(*arrays, np.array([0, len(rows)]), *ends, np.array([seed]), meta)


def attempt(
    origin: dict, number: int, path: Path, ckpt: Path | None = None, again: tuple[int, np.ndarray] | None = None
) -> None:
    """Play attempt `number` of a task and write it as a file with one episode.

    origin  its `provenance`
    again   seed and actions (T, A) of a recording; without, the origin's source acts
    """
    start, task, source = time.process_time(), origin["task"], origin["source"]
    if again:
        start_seed, actions = again
        player = functools.partial(recorded_player, actions=actions)
    else:
        # The place in the table of a task that has one: own ones must not depend on what was looked up before them.
        index = zlib.crc32(task.encode()) if ":" in task else list(envs.TASKS).index(task)
        start_seed = np.random.SeedSequence([origin["seed"], index, number]).generate_state(1)[0]
        player = player_of(task, source, ckpt)
    one = play(_environment(task), player, int(start_seed), number)
    spent = round(time.process_time() - start, 2)
    save(path, one._replace(meta=origin | one.meta | {"numbers": [number], "cpu_seconds": [spent]}))


def settings_of(task: str, source: Source, ckpt: Path | None = None) -> str:
    if source == "agent" and ckpt:  # by its content: a path says nothing elsewhere
        return f"{ckpt.name}, sha256 {hashlib.sha256(ckpt.read_bytes()).hexdigest()}"
    if source == "script":
        gait = f" {gaits.fingerprint(task)}" if task in gaits.TASKS else ""
        return f"{module_of(task, source)}{gait}, noise {NOISE} in every second"
    if ":" in source:
        return source
    own = {"plan": mpc.PLANS.get(task), "search": search_of(task)}.get(source)
    return repr(own) if own else module_of(task, source)


def provenance(task: str, source: Source, settings: str, seed: int) -> dict:
    """What an attempt depends on besides its number. Attempts with another one are made again."""
    package = envs.MAKERS.get(envs.TASKS[task].domain, ("", ""))[1].partition("[")[0]
    packages = {name: version(name) for name in sorted({package, "mujoco", "numpy"} - {""})}
    return {"version": FORMAT_VERSION, "task": task, "source": source, "settings": settings, "seed": seed,
            "packages": packages}  # fmt: skip
