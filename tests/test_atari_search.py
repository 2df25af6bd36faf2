"""Atari by search: what it looks at is undone, what it plays pays, and the moves mean what they should.

Run: pytest tests/test_atari_search.py            (two games, a few steps)
     pytest tests/test_atari_search.py -m slow    (whole episodes)
"""

import numpy as np
import pytest

import envs
import envs.atari
import experts
from envs import atari_search
from envs.atari import stick
from envs.atari_search import Search

NAMES = envs.select("atari")
FEW = ["atari-pong", "atari-atlantis", "atari-asterix"]  # a paddle, no up and down, no fire
every_game = pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES)])


@pytest.fixture
def small(monkeypatch):
    """A search that is cheap, not good."""
    monkeypatch.setattr(atari_search, "SETTINGS", dict.fromkeys(envs.atari.GAMES, Search(branches=2, horizon=24)))


def play(name, number, steps, seed=0):
    """Search for `steps` steps: actions, rewards, observations, last info."""
    env = envs.make(name)
    obs, info = env.reset(seed=seed)
    script, actions, rewards, seen = atari_search.player(env, obs, number), [], [], [obs]
    action = next(script)
    for _ in range(steps):
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        obs, reward, _, done, info = env.step(actions[-1])
        rewards.append(reward)
        seen.append(obs)
        if not done:
            action = script.send((obs, info))
    return actions, rewards, seen, info


def test_an_episode_under_search_replays_bit_for_bit_from_reset(small):
    for name in ("atari-asterix", "atari-pong"):
        actions, rewards, seen, info = play(name, 0, 100)
        env = envs.make(name)
        obs, _ = env.reset(seed=7)
        assert np.array_equal(obs, seen[0])
        for action, reward, expected in zip(actions, rewards, seen[1:], strict=True):
            obs, again, _, _, last = env.step(action)
            assert again == reward and np.array_equal(obs, expected)
        assert last == info


def test_the_console_is_as_it_was_when_an_action_is_asked_for(small):
    env = envs.make("atari-ms-pacman")
    obs, _ = env.reset(seed=0)
    before = env.get_state()
    script = atari_search.player(env, obs, 0)
    action = next(script)
    for _ in range(9):  # over two searches
        after = env.get_state()
        assert np.array_equal(after["console"], before["console"]) and after["rng"] == before["rng"]
        assert (after["steps"], after["return"]) == (before["steps"], before["return"])
        obs, _, _, _, info = env.step(action)
        before = env.get_state()
        action = script.send((obs, info))


def test_a_number_is_an_episode(small):
    one, same, other = (play("atari-boxing", number, 12)[0] for number in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@every_game
def test_moves_are_well_inside_their_region_and_differ(name):
    env = envs.make(name)
    env.reset(seed=0)
    found = [(word.name, r) for _, word, r in atari_search.moves(env)]
    assert len(set(found)) == len(found) >= 2
    shifts = [np.array(s, np.float32) for s in np.ndindex(3, 3, 3)]
    for vector, word, r in atari_search.moves(env):
        assert vector.dtype == np.float32 and np.abs(vector).max() <= 1
        assert stick(vector) == (word.name, r)
        for shift in shifts:  # 0.07 of a half turn is 13 degrees
            assert stick(np.clip(vector + 0.07 * (shift - 1), -1, 1))[0] == word.name


def test_between_neighbours_there_is_nothing_else():
    place = {word: np.array([*xy, -1], np.float32) for word, xy in atari_search.POSITIONS.items()}
    opposite = {"UPLEFT", "DOWNRIGHT"}
    for one in place:
        for other in place:
            if {one, other} != opposite:
                between = [place[one] * (1 - w) + place[other] * w for w in np.linspace(0, 1, 101, dtype=np.float32)]
                assert {stick(vector)[0] for vector in between} == {one, other}


def test_what_a_game_does_not_use_is_not_searched():
    names = {}
    for name in ("atari-space-invaders", "atari-asterix", "atari-seaquest", "atari-pong"):
        env = envs.make(name)
        env.reset(seed=0)
        names[name] = {word.name for _, word, _ in atari_search.moves(env)}
    sticks = {"UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"}
    assert names["atari-space-invaders"] == {"UPRIGHT", "UPLEFT", "UPRIGHTFIRE", "UPLEFTFIRE"}
    assert names["atari-asterix"] == sticks
    assert names["atari-seaquest"] == names["atari-pong"] == sticks | {word + "FIRE" for word in sticks}


def test_every_setting_belongs_to_a_game():
    assert {"atari-" + name for name in atari_search.SETTINGS} <= set(NAMES)
    assert {name for name, s in atari_search.SETTINGS.items() if s.toward} == set(atari_search.PROGRESS)


def test_the_kangaroo_is_drawn_up_the_ladders(monkeypatch):
    ram = np.zeros(128, np.uint8)
    way = []  # to the right, up, to the left, up, to the right
    for x, low in [(8, 18), (60, 18), (118, 18), (118, 15), (118, 12), (60, 12), (8, 12), (8, 9), (8, 6), (60, 6)]:
        ram[17], ram[16] = x, low
        way.append(atari_search.upstairs(ram))
    assert np.all(np.diff(way) > 0)
    where = []
    for worth in (100.0, -100.0):  # it starts at 8 and can walk after 40 steps
        monkeypatch.setitem(atari_search.SETTINGS, "kangaroo", Search(branches=4, horizon=40, toward=worth))
        where.append(play("atari-kangaroo", 0, 64)[2][-1][17] * 255)
    assert where[0] > 16 and where[1] < 9


def test_the_settings_are_part_of_where_a_demonstration_comes_from(monkeypatch):
    before = experts.settings_of("atari-pong", "search")
    monkeypatch.setitem(atari_search.SETTINGS, "pong", Search(branches=3))
    assert experts.settings_of("atari-pong", "search") == repr(Search(branches=3)) != before


# ---- a calm hand ----


def test_random_moves_last():
    rng = np.random.default_rng(0)
    drawn = np.concatenate([atari_search.draw(rng, 50, 8, 5.0) for _ in range(400)]).reshape(400, 50)
    changes = (drawn[:, 1:] != drawn[:, :-1]).mean()
    assert abs(changes - 7 / 8 / 5) < 0.01  # a new draw in 1 of 5 holds, another move in 7 of 8 of these
    assert (np.bincount(drawn.ravel(), minlength=8) > 0.1 * drawn.size).all()


@pytest.mark.parametrize("hold", [2, 4])
def test_a_move_changes_only_on_the_grid(monkeypatch, hold):
    monkeypatch.setitem(atari_search.SETTINGS, "asterix", Search(hold=hold, branches=4, horizon=24, calm=0.0))
    actions = np.array(play("atari-asterix", 0, 80)[0])
    changed = 1 + np.flatnonzero((actions[1:] != actions[:-1]).any(1))
    assert len(changed) > 3 and not (changed % hold).any()
    assert (changed % (2 * hold)).any()  # and on all of it


def test_a_variation_is_new_or_differs_in_one_stretch():
    rng, own, drawn = np.random.default_rng(0), [1, 2, 3, 1, 2], [5, 6, 7, 8, 9, 5, 6]
    kinds = set()
    for _ in range(400):
        tail = atari_search.vary(rng, own, 4, drawn, 2.0)
        assert len(tail) == len(drawn)
        if tail != drawn:
            kinds.add(tail[0])
            stretch = next((n for n, move in enumerate(tail) if move != tail[0]), len(tail))
            assert tail[stretch:] == (own + drawn[5:])[stretch:]
    assert kinds == {4, 5}  # the move before, a new one


def test_where_plans_tie_the_last_move_goes_on():
    unrest, rest = atari_search.unrest, atari_search.REST
    assert unrest([3, 3, 3], 3) < min(unrest([rest] * 3, 3), unrest([3, 3, 5], 3), unrest([5, 5, 5], 3))
    assert unrest([rest] * 9, 3) < unrest([3] * 9, 3)  # for long: to rest


@pytest.mark.parametrize("name", ["atari-pong", "atari-ms-pacman"])
def test_where_nothing_matters_the_stick_rests(small, name):
    actions = play(name, 0, 20)[0]  # no ball yet, no ghost: no reward in sight
    env = envs.make(name)
    env.reset(seed=0)
    assert (np.array(actions) == atari_search.moves(env)[atari_search.REST][0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atari-boxing", "atari-assault", "atari-ms-pacman"])
def test_whole_episodes_score(name):
    *_, info = play(name, 0, 1000)
    assert info["score"] >= 0.8
