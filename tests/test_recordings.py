"""Recordings: packed to the byte, played again to the bit, refused when broken, and given up where a simulator differs.

Run: pytest tests/test_recordings.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import demo_format
import demo_maker
import envs
import experts
import recordings

ROOT = Path(experts.__file__).parent
SUITES = sorted(recordings.FOLDER.glob("*.safetensors"))
LIMIT_MB, FILE_LIMIT_MB = 16, 5


def test_size():
    sizes = {path.name: path.stat().st_size / 1e6 for path in SUITES}
    print(", ".join(f"{name} {size:.2f} MB" for name, size in sizes.items()), f"in all {sum(sizes.values()):.2f} MB")
    assert len(sizes) == len(envs.MAKERS) and sum(sizes.values()) <= LIMIT_MB and max(sizes.values()) <= FILE_LIMIT_MB


def test_every_recording_is_whole_and_good():
    """`load` checks shapes and ranges; and no task is recorded with episodes that all do the same."""
    for path in SUITES:
        for task, one in recordings.load(path).items():
            n = len(one.seed)
            assert len({one.actions(e).tobytes() + one.seed[e].tobytes() for e in range(n)}) == n, task
            assert one.actions(0).shape == (envs.TASKS[task].episode_length, envs.TASKS[task].action_dim)
            assert one.meta["packages"] and one.meta["settings"], task


# The quickest of each suite.
ONE_EACH = ["cartpole-balance", "pendulum-spin", "mw-reach", "ms-reach", "mujoco-reacher", "lunarlander-hover",
            "rd-push-blue", "og-point-arena", "pygame-pong", "atari-pong"]  # fmt: skip


@pytest.mark.parametrize("task", ONE_EACH)
def test_one_task_of_each_suite_gives_what_was_recorded(task):
    assert len({envs.TASKS[name].domain for name in ONE_EACH}) == len(envs.MAKERS)
    one, env = recordings.of(task), envs.make(task, seed=5)
    env.reset(seed=int(one.seed[1]))
    rewards = [env.step(action)[1] for action in one.actions(1)]
    # Summed as a file's rows are, whose first one is NaN: the last bit depends on how many are added at once.
    assert np.nansum(np.array([np.nan, *rewards], np.float32)) == one.ret[1]


# ---- packing ----

SMALL = ["pygame-landing", "og-point-arena", "atari-pong"]


def invented(task, episodes=3, seed=0):
    """Demonstrations of the right shape. Atari's actions are of few kinds, others all differ."""
    row, rng = envs.TASKS[task], np.random.default_rng(seed)
    n, t = episodes * (row.episode_length + 1), row.episode_length
    action = rng.uniform(-1, 1, (n, row.action_dim)).astype(np.float32)
    if row.domain == "atari":
        action = action[:7][rng.integers(7, size=n)]
        action[action > 0.9] = -0.0
    reward = rng.standard_normal(n).astype(np.float32)
    action[:: t + 1] = reward[:: t + 1] = np.nan
    meta = {"version": 1, "task": task, "source": "script", "settings": "s", "seed": 0, "packages": {"numpy": "2"},
            "numbers": [4, 7, 9, 12][:episodes], "tried": 14, "tried_cpu_seconds": 1.5, "cpu_seconds": [0.1] * episodes,
            "wanted": episodes, "complete": True}  # fmt: skip
    ret, one = np.nansum(reward.reshape(episodes, t + 1), 1).astype(np.float32), np.ones(episodes, np.float32)
    obs, start, seed = np.zeros((n, row.obs_dim), np.float32), np.arange(episodes + 1) * (t + 1), [5, 6, 2**31]
    return demo_format.Demos(obs, action, reward, start, ret, one, one, np.array(seed[:episodes]), meta)


@pytest.fixture
def packed(tmp_path):
    for task in SMALL:
        demo_format.save(tmp_path / "demos" / f"{task}.safetensors", invented(task))
    recordings.pack(tmp_path / "demos", tmp_path / "recordings")
    return tmp_path


def test_packing_keeps_every_bit_and_gives_the_same_bytes_again(packed):
    for task in SMALL:
        demo = invented(task)
        one = recordings.load(packed / "recordings" / f"{envs.TASKS[task].domain}.safetensors")[task]
        assert one.seed.tolist() == [5, 6, 2**31] and one.ret.tobytes() == demo.ret.tobytes()
        t = envs.TASKS[task].episode_length
        for e in range(3):  # an episode has a row more than actions, the first one's is NaN
            assert one.actions(e).tobytes() == demo.action[e * (t + 1) + 1 : (e + 1) * (t + 1)].tobytes()
        assert one.meta["numbers"] == [4, 7, 9] and one.meta["packages"] == {"numpy": "2"} and one.meta["tried"] == 14
    recordings.pack(packed / "demos", packed / "again")
    for path in sorted((packed / "recordings").iterdir()):
        assert path.read_bytes() == (packed / "again" / path.name).read_bytes()
    atari = packed / "recordings" / "atari.safetensors"
    assert atari.stat().st_size < 3 * 1000 + 2000  # a byte a step, not twelve


def test_packing_leaves_other_tasks_alone(packed):
    path = packed / "recordings" / "miniarcade.safetensors"
    demo_format.save(packed / "more" / "pygame-cowboy.safetensors", invented("pygame-cowboy"))
    recordings.pack(packed / "more", packed / "recordings")
    assert set(recordings.load(path)) == {"pygame-cowboy", "pygame-landing"}
    demo_format.save(packed / "more" / "pygame-cowboy.safetensors", invented("pygame-cowboy", 2, seed=1))
    lines = recordings.pack(packed / "more", packed / "recordings")
    assert len(recordings.load(path)["pygame-cowboy"].seed) == 2 and "pygame-cowboy: 3 episodes" in lines[0]


def test_what_cannot_be_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no demonstrations"):
        recordings.pack(tmp_path, tmp_path / "out")
    demo = invented("pygame-landing")
    demo_format.save(tmp_path / "pygame-landing.safetensors", demo._replace(seed=np.full(3, -1)))
    with pytest.raises(ValueError, match="pygame-landing.*seeds"):
        recordings.pack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- broken files ----


def change(name, function):
    def apply(arrays, meta):
        arrays[name] = function(arrays[name])

    return apply


def put(name, index, value):
    def apply(arrays, meta):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return apply


LANDING = "pygame-landing"
BROKEN = {
    "an action out of range": put(f"{LANDING}/action", (7, 0), 1.5),
    "an action of NaN": put(f"{LANDING}/action", (7, 0), np.nan),
    "an action too few": change(f"{LANDING}/action", lambda x: x[:-1].copy()),
    "actions of another width": change(f"{LANDING}/action", lambda x: x[:, :-1].copy()),
    "actions flat": change(f"{LANDING}/action", lambda x: x.ravel().copy()),
    "float64": change(f"{LANDING}/action", lambda x: x.astype(np.float64)),
    "a seed too few": change(f"{LANDING}/seed", lambda x: x[:-1].copy()),
    "a seed below 0": put(f"{LANDING}/seed", 0, -1),
    "another length": put(f"{LANDING}/length", 0, 3),
    "a return of NaN": put(f"{LANDING}/return", 0, np.nan),
    "no return": lambda arrays, meta: arrays.pop(f"{LANDING}/return"),
    "no task": lambda arrays, meta: [arrays.pop(name) for name in list(arrays)],
    "another suite": lambda arrays, meta: meta.update(suite="atari"),
    "another version": lambda arrays, meta: meta.update(version=2),
    "a wrong task": lambda arrays, meta: rename(arrays, meta, "pygame-cowboy"),
    "a task of another suite": lambda arrays, meta: rename(arrays, meta, "walker-walk"),
    "a task that runs code": lambda arrays, meta: rename(arrays, meta, "evilmod:f"),
    "no numbers": lambda arrays, meta: meta["tasks"][LANDING].pop("numbers"),
    "a number twice": lambda arrays, meta: meta["tasks"][LANDING].update(numbers=[4, 4, 9]),
    "numbers of text": lambda arrays, meta: meta["tasks"][LANDING].update(numbers=["a", "b", "c"]),
    "no source": lambda arrays, meta: meta["tasks"][LANDING].pop("source"),
    "tasks as a list": lambda arrays, meta: meta.update(tasks=[LANDING]),
    "an origin of null": lambda arrays, meta: meta.update(tasks={LANDING: None}),
}


def rename(arrays, meta, name):
    meta["tasks"][name] = meta["tasks"].pop(LANDING)
    for key in list(arrays):
        arrays[f"{name}/{key.split('/')[1]}"] = arrays.pop(key)


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_recording_is_one_line(packed, break_it):
    path = packed / "recordings" / "miniarcade.safetensors"
    with safetensors.safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(file.metadata()["newt_recordings"])
    break_it(arrays, meta)
    save_file(arrays, path, {"newt_recordings": json.dumps(meta)})
    recordings.load.cache_clear()
    with pytest.raises(ValueError) as error:
        recordings.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("data", [b"", b"\xff" * 7, b"{}" * 50, "half"])
def test_what_is_no_recording_is_one_line(packed, data):
    path = packed / "recordings" / "miniarcade.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if data == "half" else data)
    recordings.load.cache_clear()
    with pytest.raises(ValueError, match=str(path)):
        recordings.load(path)


def test_the_commands_end_with_that_line_and_exit_code_2(packed):
    """A copy of the project with a broken file: demos.py and train.py."""
    project = packed / "project"
    project.mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "envs"]:
        (project / path.name).symlink_to(path)
    (project / "recordings").mkdir()
    (project / "recordings" / "miniarcade.safetensors").write_bytes(b"precious")
    program = "import sys; sys.path.insert(0, '.'); import recordings, pathlib; "
    program += "recordings.FOLDER = pathlib.Path('recordings').absolute(); import runpy; sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    for words in (["demos.py", "make", "--tasks", LANDING], ["train.py", "--tasks", LANDING]):
        done = subprocess.run([sys.executable, "-c", program, *words], cwd=project, capture_output=True, text=True,
                              timeout=120, env={**os.environ, "PYTHONWARNINGS": "ignore"})  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert done.returncode == 2 and len(lines) == 1 and "miniarcade.safetensors" in lines[0], done.stderr
        assert (project / "recordings" / "miniarcade.safetensors").read_bytes() == b"precious"
        assert not (project / "demos").exists() and not (project / "runs").exists()


# ---- playing them again ----


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Three episodes of two tasks by their scripts, recorded in a folder of their own."""
    monkeypatch.setattr(recordings, "FOLDER", tmp_path / "recordings")
    demo_maker.make_all(["mw-door-open", LANDING], 3, tmp_path / "made", workers=1)
    recordings.pack(tmp_path / "made", recordings.FOLDER)
    return tmp_path


def test_what_is_played_is_what_was_made(recorded, capsys):
    demo_maker.make_all(["mw-door-open", LANDING], 3, recorded / "played", workers=2)
    assert "6 episodes gave what was recorded, 0 differ and are good, 0 were dropped" in capsys.readouterr().out
    for task in ("mw-door-open", LANDING):
        made, played = (demo_format.load(recorded / word / f"{task}.safetensors", task) for word in ("made", "played"))
        for one, other in zip(made[:-2], played[:-2], strict=True):
            np.testing.assert_array_equal(one, other)
        assert {name: made.meta[name] for name in recordings.ORIGIN} == {n: played.meta[n] for n in recordings.ORIGIN}
    recordings.pack(recorded / "played", recorded / "again")
    for path in recordings.FOLDER.iterdir():
        assert path.read_bytes() == (recorded / "again" / path.name).read_bytes()


def test_a_script_goes_on_where_the_recording_ends(recorded):
    demo_maker.make_all([LANDING], 5, recorded / "played", workers=1)
    demo = demo_format.load(recorded / "played" / f"{LANDING}.safetensors", LANDING)
    first = recordings.of(LANDING).meta["numbers"]
    assert demo.meta["numbers"][:3] == first and min(demo.meta["numbers"][3:]) > max(first)
    assert len(demo.ret) == 5 and len(set(demo.seed.tolist())) == 5
    assert demo.meta["played"] == {"equal": 3, "differ": 0, "dropped": 0}


def test_another_simulator_drops_episodes_and_the_script_takes_over(recorded, monkeypatch, capsys):
    """The weld that pulls the hand is half as stiff: what was recorded comes late; the script, which looks, doesn't."""
    import envs.metaworld as suite

    make = suite.make

    def soft(task, seed, render_mode):
        env = make(task, seed, render_mode)
        env._env.unwrapped.model.eq_solref[:, 0] = 0.04  # seconds; 0.02 in the package
        return env

    monkeypatch.setattr(suite, "make", soft)
    experts._environment.cache_clear()
    task = "mw-door-open"
    recorded_only = demo_maker.Work(task, None, 3, recorded / "only", 0, None, recordings.of(task))
    while (number := recorded_only.next()) is not None:
        experts.attempt(*recorded_only.job(number))
        recorded_only.tried[number] = demo_format.load(recorded_only.file(number), task)
        recorded_only.judge()
    counts = {word: len(found) for word, found in recorded_only.played().items()}
    assert counts["dropped"] >= 1 and sum(counts.values()) == 3 and counts["equal"] == 0
    both = demo_maker.Work(task, "script", 3, recorded / "both", 0, None, recordings.of(task))
    both.tried = dict(recorded_only.tried)
    both.judge()
    assert not both.finished and both.missing == counts["dropped"]
    while (number := both.next()) is not None and both.judged < 40:
        assert number > max(both.numbers)
        experts.attempt(*both.job(number))
        both.tried[number] = demo_format.load(both.file(number), task)
        both.judge()
    both.close()
    demo = demo_format.load(both.path, task)
    assert demo.meta["played"] == counts and len(demo.ret) > 3 - counts["dropped"]
    assert (demo.score >= demo_maker.FLOOR).all() and max(demo.meta["numbers"]) > max(both.numbers)
    experts._environment.cache_clear()


def work(recorded, *rows, episodes=3, source=None):
    """A task with a recording of (number, return) and attempts of (number, return, score)."""
    t, a = envs.TASKS[LANDING].episode_length, envs.TASKS[LANDING].action_dim
    n = len(recorded)
    meta = {"source": "script", "settings": "envs.arcade", "seed": 0, "numbers": [number for number, _ in recorded]}
    one = recordings.Recording(np.arange(n), np.full(n, t), np.array([ret for _, ret in recorded], np.float32),
                               np.zeros((n * t, a), np.float32), meta)  # fmt: skip
    job = demo_maker.Work(LANDING, source, episodes, Path("nowhere"), 0, None, one)
    nothing = np.zeros((2, 1), np.float32)
    for number, ret, score in rows:
        ends = [np.array([x], np.float32) for x in (ret, score, score, 0)]
        job.tried[number] = demo_format.Demos(nothing, nothing, nothing[:, 0], np.array([0, 2]), *ends,
                                              {"numbers": [number], "cpu_seconds": [1.0]})  # fmt: skip
    job.judge()
    return job


def test_which_recorded_episodes_count():
    recorded = [(2, 100), (5, 60), (6, 100)]  # median 100, three quarters of it 75
    job = work(recorded, (2, 100, 1), (5, 60, 1), (6, 80, 1))
    assert {word: [one.meta["numbers"][0] for one in found] for word, found in job.played().items()} == {
        "equal": [2, 5],  # no worse than recorded, though below 75: it was good enough then
        "differ": [6],
        "dropped": [],
    }
    assert [one.meta["numbers"][0] for one in job.kept] == [2, 5, 6] and job.finished
    job = work(recorded, (2, 74, 1), (5, 59, 1), (6, 100, 0.2))  # below the bar, below the bar, below the floor
    assert len(job.played()["dropped"]) == 3 and job.kept == [] and job.finished  # nobody goes on


def test_what_is_played_and_by_whom():
    recorded = [(2, 100), (5, 100), (6, 100)]
    job = work(recorded, episodes=2)
    assert job.next() == 2
    job.running.add(2)
    assert job.next() == 5
    job.running.add(5)
    assert job.next() is None  # two are wanted, two are on their way
    job = work(recorded, (2, 100, 1), (5, 1, 1), episodes=2)
    assert job.next() == 6  # for the one that was dropped
    job = work(recorded, (2, 100, 1), (5, 1, 1), (6, 100, 1), episodes=4, source="script")
    assert job.next() == 7 and job.missing == 2 and not job.finished  # numbers that were never tried
    more = [(number, 90, 1) for number in (7, 8, 9, 10)]
    job = work(recorded, (2, 100, 1), (5, 1, 1), (6, 100, 1), *more, episodes=4, source="script")
    assert [one.meta["numbers"][0] for one in job.kept] == [2, 6, 7, 8]


def test_who_goes_on_after_a_recording(monkeypatch):
    """auto: a script; a source by its name only after its own recording with its own settings."""
    meta = {"source": "plan", "settings": experts.settings_of("walker-walk", "plan"), "seed": 0, "numbers": [0]}
    one = recordings.Recording(*(np.zeros(1),) * 4, meta)
    monkeypatch.setattr(recordings, "of", lambda task: None)
    assert experts.sources_of("walker-walk") == (None, "plan") and experts.sources_of("atari-pong") == (None, "search")
    assert experts.sources_of("ms-ant-walk") == (None, None)
    monkeypatch.setattr(recordings, "of", lambda task: one)
    assert experts.sources_of("walker-walk") == (one, None) and experts.sources_of("mw-reach") == (one, "script")
    assert experts.sources_of("ms-ant-walk") == (one, None)
    assert experts.sources_of("walker-walk", "plan") == (one, "plan")
    assert experts.sources_of("walker-walk", "plan", seed=1) == (None, "plan")
    monkeypatch.setitem(meta, "settings", "another planner's")
    assert experts.sources_of("walker-walk", "plan") == (None, "plan")
    assert experts.sources_of("mw-reach", "script") == (None, "script")


def test_more_recordings_than_when_a_file_was_made(recorded):
    """A file of three episodes, made when five were wanted and three recorded, grows once five are recorded."""
    work = demo_maker.Work(LANDING, None, 5, recorded / "d", 0, None, recordings.of(LANDING))
    for number in work.numbers:
        experts.attempt(*work.job(number))
    work.read()
    work.close()
    assert len(demo_format.load(work.path, LANDING).ret) == 3
    demo_maker.make_all([LANDING], 5, recorded / "five", workers=1)
    recordings.pack(recorded / "five", recordings.FOLDER)
    demo_maker.make_all([LANDING], 5, recorded / "d", workers=1)
    assert len(demo_format.load(work.path, LANDING).ret) == 5
