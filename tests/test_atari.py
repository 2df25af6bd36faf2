"""Atari: the stick by a table of all 18 actions, the rest against ale-py's own environment and measured returns.

Run: pytest tests/test_atari.py            (a few games)
     pytest tests/test_atari.py -m slow    (all 27: against ale-py, saved states, measured returns)
"""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
import envs.atari

NAMES = envs.select("atari")
FEW = ["atari-pong", "atari-seaquest", "atari-road-runner"]  # a paddle; a stick; one that is over early
every_game = pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES)])
ZERO = np.zeros(3, np.float32)


def random_actions(steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 3)).astype(np.float32)


def act(radius, degrees, fire):
    """The action that puts the stick there."""
    return np.array([2 * radius - 1, degrees / 180, 1 if fire else -1], np.float32)


@pytest.fixture
def rest_position(monkeypatch):
    """The stick of today's ale-py."""
    monkeypatch.setattr(envs.atari, "STICK_BACK", -0.5)


# ---- the stick ----

# (radius, degrees) -> direction under ale-py 0.10, under today's
POSITIONS = [
    (1.0, 45, "UPRIGHT", "UPRIGHT"),
    (1.0, 135, "UPLEFT", "UPLEFT"),
    (1.0, -45, "DOWNRIGHT", "DOWNRIGHT"),
    (1.0, -135, "DOWNLEFT", "DOWNLEFT"),
    (1.0, 0, "DOWNRIGHT", "RIGHT"),
    (1.0, 90, "UPLEFT", "UP"),
    (1.0, 180, "DOWNLEFT", "LEFT"),
    (1.0, -90, "DOWNLEFT", "DOWN"),
    (0.0, 0, "DOWNLEFT", ""),
    (0.45, 30, "DOWNLEFT", ""),
    (0.7, 45, "DOWNLEFT", ""),  # 0.7 cos(45) < 0.5
    (0.72, 45, "UPRIGHT", "UPRIGHT"),
    (0.6, 180, "DOWNLEFT", "LEFT"),
    (0.6, -90, "DOWNLEFT", "DOWN"),
    (0.9, 20, "DOWNRIGHT", "RIGHT"),
    (0.9, 70, "UPLEFT", "UP"),
]


@pytest.mark.parametrize("radius, degrees, legacy, today", POSITIONS)
def test_stick_table(radius, degrees, legacy, today, monkeypatch):
    for fire in (False, True):
        for back, word in ((0.5, legacy), (-0.5, today)):
            monkeypatch.setattr(envs.atari, "STICK_BACK", back)
            want = (word + ("FIRE" if fire else "")) or "NOOP"
            got = envs.atari.stick(act(radius, degrees, fire))
            assert got == (want, pytest.approx(radius, abs=1e-6))


def test_stick_reaches_all_18_actions_or_8():
    import ale_py

    assert envs.atari.STICK_BACK == 0.5  # the published rule is the default
    words = {word + fire or "NOOP" for *_, word in POSITIONS for fire in ("", "FIRE")}
    assert words == set(ale_py.Action.__members__) and len(words) == 18  # the table misses none
    legacy = {envs.atari.stick(action)[0] for action in random_actions(3000)}
    assert legacy == {up + side + fire for up in ("UP", "DOWN") for side in ("LEFT", "RIGHT") for fire in ("", "FIRE")}


def test_zero_action(monkeypatch):
    assert envs.atari.stick(ZERO) == ("DOWN", 0.5)  # x is 0.5 to the bit: neither right nor left; no fire
    monkeypatch.setattr(envs.atari, "STICK_BACK", -0.5)
    assert envs.atari.stick(ZERO) == ("NOOP", 0.5)


# ---- against ale-py's environment ----


@every_game
def test_same_numbers_as_ale_py(name, rest_position):
    import ale_py

    gym.register_envs(ale_py)
    words = {"beamrider": "BeamRider", "upndown": "UpNDown"}
    game = words.get(name[6:], "".join(word.capitalize() for word in name[6:].split("-")))
    ref = gym.make(f"ALE/{game}-v5", obs_type="ram", continuous=True, repeat_action_probability=0)
    env = envs.make(name)
    want, got = ref.reset(seed=3)[0], env.reset(seed=5)[0]
    np.testing.assert_array_equal(got * np.float32(255), want)
    paid = 0.0
    for a in random_actions(250):
        theirs = np.array([(a[0] + 1) / 2, np.float32(np.pi) * a[1], (a[2] + 1) / 2], np.float32)
        want, want_reward, *_ = ref.unwrapped.step(theirs)
        got, reward, *_ = env.step(a)
        np.testing.assert_array_equal(np.rint(got * 255).astype(np.uint8), want)
        assert reward == want_reward
        paid += abs(reward)
    assert paid > 0 or name not in FEW[:2]


# ---- the contract ----


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_contract():
    env = envs.make("atari-boxing")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(ZERO)
    check_env(env, skip_render_check=True)
    obs, info = env.reset(seed=0)
    assert info == {"score": 0.5, "success": 0.0}  # a return of 0 between -100 and 100
    with pytest.raises(ValueError, match=r"this task takes \(3,\)"):
        env.step(np.zeros(2, np.float32))
    total = 0.0
    for t, action in enumerate(random_actions(1000), start=1):
        assert obs.shape == (128,) and obs.dtype == np.float32 and 0 <= obs.min() and obs.max() <= 1
        obs, reward, terminated, truncated, info = env.step(action)
        total += reward
        assert type(reward) is float and terminated is False and truncated is (t == 1000)
        assert info == {"score": pytest.approx((total + 100) / 200), "success": 0.0}
    assert total != 0
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(ZERO)


def test_after_game_over_nothing_moves_and_nothing_pays():
    env = envs.make("atari-road-runner")
    env.reset()
    rams, rewards = [], []
    for action in random_actions(1000, seed=1):
        obs, reward, terminated, _, _ = env.step(action)
        assert terminated is False
        rams.append(obs)
        rewards.append(reward)
    over = next(t for t in range(1000) if (np.array(rams[t:]) == rams[t]).all())
    assert 50 < over < 900 and not any(rewards[over + 1 :])
    env.reset()
    assert (env.step(ZERO)[0] != rams[-1]).any()  # the next episode plays again


def test_seeds_and_past_change_nothing_and_processes_agree():
    code = """
import sys, hashlib
import numpy as np
import envs
for name in sys.argv[1:]:
    for seed in (0, 1):
        env, digest = envs.make(name, seed=seed), hashlib.sha256()
        for episode in range(2):
            digest = hashlib.sha256(env.reset(seed=seed if episode else None)[0].tobytes())
            for action in np.random.default_rng(0).uniform(-1, 1, (120, 3)).astype(np.float32):
                obs, reward = env.step(action)[:2]
                digest.update(obs.tobytes() + np.float64(reward).tobytes())
            print(name, digest.hexdigest())
"""
    command, root = [sys.executable, "-c", code, *FEW], Path(envs.__file__).parents[1]
    runs = [subprocess.run(command, cwd=root, capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0 and not runs[0].stderr, runs[0].stderr  # not even a greeting
    assert runs[0].stdout == runs[1].stdout
    lines = runs[0].stdout.splitlines()
    assert len(lines) == 4 * len(FEW) and len(set(lines)) == len(FEW)


@every_game
def test_state_is_restored_exactly(name):
    def go_on(env, actions):
        rows = []
        for action in actions:
            obs, reward, _, _, info = env.step(action)
            rows.append([*obs, reward, info["score"]])
        return np.array([*rows, [*env.reset()[0], 0, 0]])

    actions = random_actions(200)
    never_saved, env = envs.make(name, seed=1), envs.make(name, seed=1)
    for each in (never_saved, env):
        each.reset()
        for action in actions[:110]:
            each.step(action)
    state, frame = env.get_state(), env.render()
    assert {type(value) for key, value in state.items() if key != "rng"} <= {np.ndarray, int, float}
    want = go_on(never_saved, actions[110:])
    assert len(np.unique(want[:90, :128], axis=0)) > 20  # the game was on
    np.testing.assert_array_equal(go_on(env, actions[110:]), want)  # saving changes nothing
    fresh, busy = envs.make(name, seed=2), envs.make(name, seed=3)  # one never reset, one in another game
    busy.reset()
    for action in random_actions(70, seed=9):
        busy.step(action)
    for other in (env, fresh, busy):
        other.set_state(state)
        np.testing.assert_array_equal(other.render(), frame)
        assert other.np_random.bit_generator.state == state["rng"]
        assert other.get_state().keys() == state.keys()
        np.testing.assert_array_equal(other.get_state()["console"], state["console"])
        np.testing.assert_array_equal(go_on(other, actions[110:]), want)
    np.testing.assert_array_equal(env.render(), other.render())


def test_frame():
    env = envs.make("atari-seaquest", render_mode="rgb_array")
    env.reset()
    frames = []
    for action in random_actions(40):
        frames.append(env.render())
        env.step(action)
    assert frames[-1].shape == (224, 224, 3) and frames[-1].dtype == np.uint8
    assert (frames[0] != frames[-1]).any()
    screen = env._ale.getScreenRGB()
    assert screen.shape == (210, 160, 3)
    last = env.render()
    np.testing.assert_array_equal(last[7:217, 32:192], screen)
    last[7:217, 32:192] = 0
    assert not last.any()


# ---- returns ----

# Return of 1000 actions of 0 with the stick of today (nothing is pressed): to the point, as nothing is random.
IDLE = {"asterix": 200, "atlantis": 2000, "boxing": -39, "double-dunk": -2, "ice-hockey": -4, "ms-pacman": 60}
IDLE |= {"pong": -21, "upndown": 490}
# Returns of uniform actions: with the published stick; with today's, mean and deviation.
RANDOM = {
    "alien": (177, 251.5, 74.2),
    "assault": (168, 316.1, 79.5),
    "asterix": (235, 260, 126),
    "atlantis": (14910, 11000, 2070),
    "bank-heist": (3, 10.5, 8.05),
    "battle-zone": (1500, 1800, 1720),
    "beamrider": (277.2, 402.6, 95.7),
    "boxing": (-4.667, -1.833, 1.95),
    "crazy-climber": (66.67, 933.3, 256),
    "krull": (0, 930, 201),
    "name-this-game": (720, 795, 165),
    "pong": (-20.67, -19.67, 1.6),
    "robotank": (2.333, 0.8333, 0.687),
    "seaquest": (240, 93.33, 34),
    "upndown": (650, 1222, 356),
    "yars-revenge": (1288, 4019, 370),
}


def mean_return(name, episodes, actions):
    env, returns = envs.make(name), []
    for seed in range(episodes):
        env.reset()
        returns.append(sum(env.step(action)[1] for action in actions(seed)))
    return np.mean(returns)


def idle(seed):
    return np.zeros((1000, 3), np.float32)


def uniform(seed):
    return random_actions(1000, seed)


@pytest.mark.parametrize("game", ["boxing", "upndown"])
def test_idle_return(game, rest_position):
    assert mean_return(f"atari-{game}", 1, idle) == IDLE[game]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_idle_return_of_all_games(name, rest_position):
    assert mean_return(name, 1, idle) == IDLE.get(name[6:], 0)


def test_random_returns_tell_the_two_sticks_apart(monkeypatch):
    """Krull needs a single direction: 0 with the published stick, some 900 with today's."""
    assert mean_return("atari-krull", 1, uniform) == 0
    monkeypatch.setattr(envs.atari, "STICK_BACK", -0.5)
    assert 400 < mean_return("atari-krull", 1, uniform) < 1500


@pytest.mark.parametrize("game, low, high", [("pong", -21, -17), ("seaquest", 60, 500), ("boxing", -20, 5)])
def test_random_return(game, low, high):
    assert low <= mean_return(f"atari-{game}", 1, uniform) <= high


@pytest.mark.slow
@pytest.mark.parametrize("game", RANDOM)
def test_random_returns(game, monkeypatch):
    """Loosely: the measured ones are means of a few episodes."""
    legacy, today, deviation = RANDOM[game]
    assert abs(mean_return(f"atari-{game}", 2, uniform) - legacy) < max(4 * deviation, 0.5 * abs(legacy)) + 0.5
    monkeypatch.setattr(envs.atari, "STICK_BACK", -0.5)
    assert abs(mean_return(f"atari-{game}", 2, uniform) - today) < 3 * deviation + 0.5


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match="task 'atari-pong' needs `pip install ale-py`"):
        envs.make("atari-pong")


def test_table_of_games():
    assert [f"atari-{game}" for game in envs.atari.GAMES] == NAMES
    for name, (low, high) in zip(NAMES, envs.atari.GAMES.values(), strict=True):
        signed = f"R{'+' if low < 0 else '-'}{abs(low)}" if low else "R"
        inner = f"({signed})/{high - low}" if low else f"R/{high}"
        assert envs.TASKS[name].score_formula == f"clip01({inner})"


# Games whose next start the emulator's own reset makes a matter of the past: of how many resets, of what was played.
OF_RESETS = ["assault", "beamrider", "chopper-command", "ice-hockey", "krull", "seaquest"]
OF_PLAY = ["ice-hockey", "yars-revenge"]


@pytest.mark.parametrize("game", sorted({*OF_RESETS, *OF_PLAY}))
def test_reset_forgets_the_past(game):
    """The emulator's own reset doesn't, in these seven; in Boxing it is the sixteenth that doesn't."""
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 3)).astype(np.float32)
    env, fresh = envs.make(f"atari-{game}"), envs.make(f"atari-{game}")

    def play(env):
        obs = [env.reset(seed=1)[0]]
        frame = env.render()
        return np.array(obs + [env.step(action)[0] for action in actions]), frame

    first, frame = play(fresh)
    for _ in range(6):
        again, picture = play(env)
        np.testing.assert_array_equal(again, first)
        np.testing.assert_array_equal(picture, frame)


@every_game
def test_where_the_emulators_own_reset_remembers(name):
    """Its memory after each of six resets, with nothing or a hundred frames in between: never chance, but the past."""
    import ale_py

    def starts(frames):
        ale = envs.make(name)._ale
        rows = [ale.getRAM().copy()]
        for _ in range(6):
            for _ in range(frames):
                ale.act(ale_py.Action.UPRIGHTFIRE, 1.0)
            ale.reset_game()
            rows.append(ale.getRAM().copy())
        return np.array(rows)

    idle, played = starts(0), starts(100)
    np.testing.assert_array_equal(starts(100), played)  # the same past, the same start
    assert (idle != idle[0]).any() == (name[6:] in OF_RESETS)
    assert (played != idle).any() == (name[6:] in OF_PLAY)
