"""Demonstrations: what is stored replays exactly, only good attempts are kept, broken files are told from good ones.

Run: pytest tests/test_demos.py                (about 30 s on one core)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import demos
import envs

ROOT = Path(demos.__file__).parent
TASK, EPISODES = "mw-door-open", 5  # its expert always succeeds and, going on, always loses it again
ARRAYS = ("obs", "action", "reward", "episode_start", "return", "success", "score", "seed")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "new" / f"{TASK}.safetensors"  # the folder isn't there yet
    demos.make(TASK, EPISODES, path)
    return path


@pytest.fixture(scope="module")
def demo(path):
    return demos.load(path, TASK)


def episodes(demo):
    """(obs, action, reward) of each episode, one row more than it has steps."""
    for first, end in zip(demo.episode_start[:-1], demo.episode_start[1:], strict=True):
        yield demo.obs[first:end], demo.action[first:end], demo.reward[first:end]


def read(path):
    with safetensors.safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["newt_demos"])


def write(path, arrays, meta):
    save_file(arrays, path, {"newt_demos": meta if isinstance(meta, str) else json.dumps(meta)})


# ---- what is stored ----


def test_file_holds_the_arrays_of_the_format(path, demo):
    arrays, meta = read(path)
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in arrays.items():
        assert array.dtype == (np.int64 if name in ("episode_start", "seed") else np.float32), name
    assert len(demo.ret) == EPISODES and len(set(demo.seed.tolist())) == EPISODES
    assert (np.diff(demo.episode_start) == envs.TASKS[TASK].episode_length + 1).all()  # T steps, T + 1 rows
    assert meta["task"] == TASK and meta["tried"] >= EPISODES and {"metaworld", "mujoco"} <= set(meta["packages"])


def test_replaying_the_actions_gives_the_same_episode(demo):
    env = envs.make(TASK, seed=123)
    for e, (obs, action, reward) in enumerate(episodes(demo)):
        got, _ = env.reset(seed=int(demo.seed[e]))
        np.testing.assert_array_equal(got, obs[0])
        assert np.isnan(action[0]).all() and np.isnan(reward[0])
        for t in range(1, len(obs)):
            got, r, _, truncated, info = env.step(action[t])
            np.testing.assert_array_equal(got, obs[t])
            assert np.float32(r) == reward[t]
        assert truncated and info["success"] == demo.success[e] and info["score"] == demo.score[e]
        np.testing.assert_allclose(demo.ret[e], reward[1:].sum(dtype=np.float64), rtol=1e-5)
        assert np.abs(action[1:]).max() <= 1


def test_same_seed_same_bytes_other_seed_other_demonstrations(path, tmp_path):
    demos.make(TASK, EPISODES, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    demos.make(TASK, 1, tmp_path / "other.safetensors", seed=1)
    assert not set(demos.load(tmp_path / "other.safetensors", TASK).seed.tolist()) & set(read(path)[0]["seed"].tolist())


# ---- how an attempt goes on after success ----


class Drift(gym.Env):
    """The hand moves by 0.02 x action and is carried along x by 0.004 a step. Success is a window in x."""

    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.hand, self.received = np.zeros(3), []
        return self._result()[0], {"success": 0.0, "score": 0.0}

    def step(self, action):
        assert action.dtype == np.float32 and action.shape == (4,) and (np.abs(action) <= 1).all()
        self.received.append(action.copy())
        self.hand = self.hand + 0.02 * action[:3] + [0.004, 0, 0]
        return self._result()

    def _result(self):
        obs = np.append(self.hand, 7).astype(np.float32)
        success = inside(obs)
        return obs, float(self.hand[0]), False, len(self.received) == 24, {"success": success, "score": success}


class Rush:
    """Asks for more than the action's range allows, and for another gripper effort at every place."""

    def get_action(self, obs):
        return np.array([3.0, -3.0, 0.25, obs[0]])


def inside(obs):
    return float(0.09 <= obs[0] <= 0.13)


@pytest.mark.parametrize("way", ["continue", "zero", "position", "repeat", "while"])
def test_way_by_definition(way):
    env = Drift()
    got = demos.attempt(env, Rush(), 5, way)
    obs, action = got.obs, got.action
    np.testing.assert_array_equal(action[1:], env.received)
    assert got.obs.shape == (25, 4) and np.isnan(action[0]).all() and np.isnan(got.reward[0])
    assert (got.seed, got.way, got.success) == (5, way, inside(obs[-1]))
    np.testing.assert_allclose(got.reward[1:], obs[1:, 0], rtol=1e-6)  # of the step that led to the row
    first = next(t for t in range(25) if inside(obs[t]))
    assert first == 4
    for t in range(1, 25):
        expert = np.clip(Rush().get_action(obs[t - 1].astype(np.float64)), -1, 1)
        gripper = action[first, 3]
        still = np.array([0, 0, 0, gripper])
        after = {
            "continue": expert,
            "zero": still,
            "position": np.append(np.clip(10 * (obs[first, :3] - obs[t - 1, :3]), -1, 1), gripper),
            "repeat": action[t - 1],
            "while": still if inside(obs[t - 1]) else expert,
        }[way]
        np.testing.assert_allclose(action[t], expert if t <= first else after, atol=1e-6, err_msg=f"step {t}")
    assert got.success == (way == "position")  # the only one that stands up to the drift


def test_ways_are_drawn_in_turn_and_stored(monkeypatch, tmp_path):
    drawn, attempt = [], demos.attempt

    def spy(env, expert, seed, way):
        drawn.append(attempt(env, expert, seed, way))
        return drawn[-1]

    monkeypatch.setattr(demos, "attempt", spy)
    demos.make(TASK, 4, tmp_path / "file.safetensors")
    demo = demos.load(tmp_path / "file.safetensors", TASK)
    assert len(demos.WAYS) == 5 and {a.way for a in drawn} == set(demos.WAYS)
    assert [a.way for a in drawn] == [demos.WAYS[i % 5] for i in range(len(drawn))] and len(drawn) == demo.meta["tried"]
    ways = {a.seed: a.way for a in drawn}
    assert demo.meta["ways"] == [ways[seed] for seed in demo.seed.tolist()]
    assert len(set(demo.meta["ways"])) >= 3 and "continue" not in demo.meta["ways"]
    # The rule of the file's head, spelled out. Here each way has its share of the successes, so all of them count.
    good = [a for a in drawn if a.success == 1]
    median = max(np.median([np.nansum(a.reward) for a in good if a.way == way]) for way in {a.way for a in good})
    want = [a.seed for a in good if np.nansum(a.reward) > 0.75 * median][:4]
    assert demo.seed.tolist() == want and (demo.success == 1).all()


# ---- which attempts are accepted ----


def tried(*rows):
    """Attempts from (way, return, success); the seed is the position."""
    nothing, reward = np.zeros((3, 1), np.float32), [np.array([np.nan, r - 1, 1], np.float32) for _, r, _ in rows]
    return [
        demos.Attempt(nothing, nothing, reward[i], float(success), float(success), i, way)
        for i, (way, _, success) in enumerate(rows)
    ]


def accepted(*rows, episodes=99):
    return [attempt.seed for attempt in demos.accept(tried(*rows), episodes)]


def test_accept_by_hand():
    zero = [("zero", 100, 1), ("zero", 75, 1), ("zero", 76, 1), ("zero", 200, 0), ("zero", 101, 1), ("zero", 120, 1)]
    assert accepted(*zero) == [0, 2, 4, 5]  # median of the successes 100: 75 isn't above 0.75 of it; a failure is out
    assert accepted(*zero, episodes=3) == [0, 2, 4]  # the first ones, not the best ones
    assert accepted(*zero, *[("repeat", 50, 1)] * 6) == [0, 2, 4, 5]  # the bar is the best way's, not that of all
    assert accepted(*zero, *[("position", 160, 1)] * 3) == [6, 7, 8]  # 0.75 x 160 = 120, not above
    many = [("zero", 100, 1)] * 40
    assert len(accepted(*many, ("position", 900, 1))) == 41  # one lucky attempt of a way does not set the bar


def test_nothing_good_nothing_saved(monkeypatch, tmp_path):
    def fails(env, expert, seed, way):
        attempt = tried((way, 5, 0))[0]
        return attempt._replace(seed=seed)

    assert demos.TRIES >= 20  # handle-press: one success in ten to forty
    monkeypatch.setattr(demos, "attempt", fails)
    with pytest.raises(ValueError, match=f"{TASK}.*none of {2 * demos.TRIES} attempts"):
        demos.make(TASK, 2, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["walker-walk", "mw-reech"])
def test_task_without_a_source(task, tmp_path):
    with pytest.raises(ValueError, match=f"{task}.*metaworld"):
        demos.make(task, 1, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="episodes"):
        demos.make(TASK, 0, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


# ---- broken files ----


def set_at(name, index, value):
    def change(arrays, meta):
        arrays[name][index] = value

    return change


def replace(name, function):
    def change(arrays, meta):
        arrays[name] = function(arrays[name])

    return change


BROKEN = {
    "obs of another width": replace("obs", lambda x: x[:, :-1].copy()),
    "action of another width": replace("action", lambda x: np.concatenate([x, x], 1)),
    "reward too short": replace("reward", lambda x: x[:-1].copy()),
    "reward as a column": replace("reward", lambda x: x[:, None].copy()),
    "obs without rows": replace("obs", lambda x: np.zeros((), np.float32)),
    "a return too few": replace("return", lambda x: x[:-1].copy()),
    "a seed too many": replace("seed", lambda x: np.append(x, 1)),
    "float64": replace("obs", lambda x: x.astype(np.float64)),
    "offsets as floats": replace("episode_start", lambda x: x.astype(np.float32)),
    "offsets start late": set_at("episode_start", 0, 1),
    "offsets end early": set_at("episode_start", -1, 400),
    "offsets go back": set_at("episode_start", 2, 50),
    "offsets as a table": replace("episode_start", lambda x: x[:, None].copy()),
    "no episode": replace("episode_start", lambda x: x[:1].copy()),
    "NaN observed": set_at("obs", (7, 0), np.nan),
    "infinite observation": set_at("obs", (7, 0), np.inf),
    "NaN action": set_at("action", (7, 0), np.nan),
    "NaN reward": set_at("reward", 7, np.nan),
    "infinite reward": set_at("reward", 7, np.inf),
    "an action in a first row": set_at("action", (101, 0), 0.5),
    "a reward in a first row": set_at("reward", 101, 0.5),
    "an array missing": lambda arrays, meta: arrays.pop("seed"),
    "another version": lambda arrays, meta: meta.update(version=99),
    "another task": lambda arrays, meta: meta.update(task="mw-door-close"),
}


def check_refused(path, task, *words):
    """load raises one line that names the file."""
    with pytest.raises(ValueError) as error:
        demos.load(path, task)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and len(message) < 400, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_refused(path, tmp_path, change):
    arrays, meta = read(path)
    broken = tmp_path / path.name
    write(broken, arrays, meta)
    demos.load(broken, TASK)  # a faithful copy is fine
    change(arrays, meta)
    write(broken, arrays, meta)
    check_refused(broken, TASK, TASK)


def test_other_files_are_refused(path, tmp_path):
    arrays, meta = read(path)
    data, other = path.read_bytes(), tmp_path / path.name
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        other.write_bytes(data[:size])
        check_refused(other, TASK)
    other.write_bytes(b"not a safetensors file at all" * 100)
    check_refused(other, TASK)
    save_file(arrays, other)  # no header
    check_refused(other, TASK)
    for text in ("not JSON", "[1]", "null", '"text"'):
        write(other, arrays, text)
        check_refused(other, TASK)
    check_refused(path, "mw-door-close", TASK, "mw-door-close")
    check_refused(path, "mw-nothing", "mw-nothing")
    with pytest.raises(FileNotFoundError, match="mw-reach"):
        demos.load(tmp_path / "none.safetensors", "mw-reach")


# ---- the folder ----


def stamp(file):
    return file.stat().st_mtime_ns, file.stat().st_ino


def test_make_all_makes_what_is_missing_and_keeps_the_rest(tmp_path):
    demos.make_all(["mw-reach", TASK], 2, tmp_path, workers=2)
    files = sorted(tmp_path.iterdir())  # nothing but these: no temporary file is left
    assert [file.name for file in files] == [f"{TASK}.safetensors", "mw-reach.safetensors"]
    demos.make(TASK, 2, tmp_path / "alone" / "x.safetensors")
    assert files[0].read_bytes() == (tmp_path / "alone" / "x.safetensors").read_bytes()  # workers change nothing
    before = [stamp(file) for file in files]
    demos.make_all([TASK], 1, tmp_path)  # more than enough
    demos.make_all(["mw-reach", TASK], 2, tmp_path, seed=9)
    assert [stamp(file) for file in files] == before
    demos.make_all([TASK], 3, tmp_path, workers=1)  # too few
    assert len(demos.load(files[0], TASK).ret) == 3 and stamp(files[1]) == before[1]


def test_failed_write_leaves_the_old_file_and_no_other(path, tmp_path, monkeypatch):
    target = tmp_path / path.name
    demos.make(TASK, 1, target)
    before = target.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    for module, name in ((os, "fsync"), (os, "replace"), (demos, "save_file")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space"):
                demos.make(TASK, 1, target, seed=1)
        assert list(tmp_path.iterdir()) == [target] and target.read_bytes() == before


# ---- the command line ----


def run(*words, cwd=ROOT):
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "demos.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environ, timeout=120)


def test_command_line(tmp_path):
    done = run("make", "--tasks", f"mw-reach,{TASK}", "--episodes", "2", "--out", "d", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("list", "d", cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not done.stderr and [line[0] for line in lines[1:]] == [TASK, "mw-reach"]
    for name, *numbers in lines[1:]:
        demo = demos.load(tmp_path / "d" / f"{name}.safetensors", name)
        row = dict(zip(lines[0][1:], map(float, numbers), strict=True))
        assert (row["episodes"], row["success"], row["score"]) == (2, 1, 1)
        assert abs(row["return"] - demo.ret.mean()) <= 0.051 and abs(row["MB"] - 0.036) < 0.006


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("make --tasks mw-reech", "mw-reach"),  # a close name
        ("make --tasks walker-walk", "walker-walk"),
        ("make --tasks mw-reach --episodes 0", "episodes"),
        (f"make --tasks {TASK} --out broken", f"{TASK}.safetensors"),
        ("make --tasks mw-reach --out afile", "mw-reach"),
        ("list nowhere", "nowhere"),
        ("list broken", f"{TASK}.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, said):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{TASK}.safetensors").write_bytes(b"precious")
    (tmp_path / "afile").write_text("precious")
    done = run(*words.split(), cwd=tmp_path)
    message = [line for line in done.stderr.split("\n") if line.strip() and not line.strip("\r").startswith("demos:")]
    assert done.returncode == 2 and len(message) == 1 and said in message[0], done.stderr
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == ["afile", "broken", f"broken/{TASK}.safetensors"]  # nothing else was written
    assert (tmp_path / "afile").read_text() == (tmp_path / "broken" / f"{TASK}.safetensors").read_text() == "precious"
