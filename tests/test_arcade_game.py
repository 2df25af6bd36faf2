"""What MiniArcade games share, on a game made up for this file: episode, score, state, Canvas, IntRect.

Run: pytest tests/test_arcade_game.py
"""

import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.game import SIZE, Canvas, Game, IntRect


class Walk(Game):
    """A random walk that pays where it gets to."""

    STATE = ("x", "trail")

    def start(self):
        self.x, self.trail = self.np_random.normal(), [0.0]
        assert self.t == 0 and self.ret == 0

    def advance(self, action):
        self.seen = (self.t, action)
        self.x += action[0] + self.np_random.normal()
        self.trail.append(self.x)
        return self.x

    def observe(self):
        return self.x, len(self.trail)

    def grade(self):
        return (self.ret + 3) / 10

    def draw(self, canvas):
        canvas.circle((255, 0, 0), 50, 60, 20 + 10 * self.cosmetic.random())


def walk(seed=0, length=20):
    return Walk(SimpleNamespace(name="walk", action_dim=1, obs_dim=2, episode_length=length), seed, "rgb_array")


def play(env, actions):
    return np.array([np.append((s := env.step(a))[0], [s[1], s[4]["score"]]) for a in actions])


ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 1)).astype(np.float32)


# ---- the episode ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(walk(), skip_render_check=True)


def test_episode_ends_at_its_length_and_needs_a_reset():
    env = walk()
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step([0])
    for _ in range(2):
        env.reset()
        for t in range(1, 21):
            obs, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
            assert terminated is False and truncated is (t == 20) and type(reward) is float
            assert obs.dtype == np.float32 and obs.shape == (2,)
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            env.step([0])


def test_action_is_clipped_and_its_shape_checked():
    env = walk()
    env.reset()
    for action, want in (([5], 1), ([-5], -1), (np.float32([0.25]), 0.25)):
        env.step(action)
        assert env.seen[1] == [want] and env.seen[1].dtype == np.float64
    assert env.seen[0] == 2  # still the time before the step
    for wrong in (np.zeros(2), 0.0, np.zeros((1, 1))):
        with pytest.raises(ValueError, match=r"this task takes \(1,\)"):
            env.step(wrong)


def test_score_follows_the_return_and_is_clipped():
    env = walk()
    assert env.reset(seed=0)[1] == {"score": 0.3, "success": 0.0}
    total = 0.0
    for _ in range(10):
        _, reward, _, _, info = env.step([1])
        total += reward
        assert info == {"score": pytest.approx(min(1, max(0, (total + 3) / 10)), abs=1e-12), "success": 0.0}
        assert type(info["score"]) is float
    for ret, want in ((-50.0, 0), (50.0, 1)):
        env.set_state({"ret": ret})
        assert env.step([0])[4]["score"] == want
    assert env.reset()[1]["score"] == 0.3


# ---- randomness and state ----


def test_seed_decides_everything():
    a, b = walk(seed=1), walk(seed=5)
    a.reset(seed=3)
    play(a, ACTIONS)
    np.testing.assert_array_equal(a.reset(seed=5)[0], b.reset()[0])  # the constructor's seed is a reset's seed
    np.testing.assert_array_equal(play(a, ACTIONS), play(b, ACTIONS))
    np.testing.assert_array_equal(a.reset()[0], b.reset()[0])
    assert (a.reset(seed=5)[0] != a.reset()[0]).any()


def test_state_is_exact_and_a_copy():
    env, other = walk(), walk(seed=9)
    env.reset()
    other.reset()
    play(env, ACTIONS)
    state = env.get_state()
    assert set(state) == {"x", "trail", "t", "ret", "rng"} and state["t"] == 8
    want = play(env, ACTIONS)
    next_start = env.reset()[0]
    for again in (env, other):
        again.set_state(state)
        np.testing.assert_array_equal(play(again, ACTIONS), want)  # trail is in obs: it was not shared
        np.testing.assert_array_equal(again.reset()[0], next_start)
    assert len(state["trail"]) == 9


def test_part_of_a_state_and_an_unknown_one():
    env = walk()
    env.reset()
    before = env.get_state()
    env.set_state({"x": 7.0})
    after = env.get_state()
    assert after.pop("x") == 7.0 and before.pop("x") != 7.0
    assert after == before
    with pytest.raises(ValueError, match="walk has no state called cosmetic, y"):
        env.set_state({"x": 1.0, "y": 0, "cosmetic": 0})
    assert env.x == 7.0


def test_drawing_does_not_move_the_generator():
    env = walk()
    env.reset()
    before = env.get_state()
    frames = [env.render() for _ in range(5)]
    assert env.get_state() == before
    assert frames[0].shape == (224, 224, 3) and any((frame != frames[0]).any() for frame in frames[1:])


def test_states_need_no_pygame():
    code = """
import sys
sys.modules["pygame"] = None
import envs
env = envs.make("pygame-air-hockey")
env.reset()
env.step(env.action_space.sample())
try:
    env.render()
except ImportError as error:
    print("no pygame", end="")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=envs.__path__[0] + "/..", capture_output=True)
    assert done.stdout == b"no pygame", done.stderr.decode()


# ---- Canvas ----


def lit(canvas):
    """Rows and columns with anything on them: top, bottom, left, right."""
    y, x = np.nonzero(canvas.frame().any(axis=-1))
    return y.min(), y.max(), x.min(), x.max()


def test_frame_is_rows_first_and_upright():
    canvas = Canvas((1, 2, 3))
    canvas.rect((10, 20, 30), 5, 7, 2, 4)
    frame = canvas.frame()
    assert frame.shape == (SIZE, SIZE, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
    assert (frame[7:11, 5:7] == (10, 20, 30)).all()
    frame[7:11, 5:7] = 1, 2, 3
    assert (frame == (1, 2, 3)).all()
    assert (canvas.frame()[7, 5] == (10, 20, 30)).all()  # a copy


@pytest.mark.parametrize("alpha", [None, 255, 128])
def test_shapes_are_where_they_belong(alpha):
    color = (200, 200, 200) if alpha is None else (200, 200, 200, alpha)
    for draw, want in (
        (lambda c: c.rect(color, 30.9, 40.9, 10, 20), (40, 59, 30, 39)),
        (lambda c: c.circle(color, 100.9, 50.9, 10), (40, 59, 90, 109)),
        (lambda c: c.ellipse(color, 30, 40, 10, 20), (40, 59, 30, 39)),
        (lambda c: c.line(color, 10, 20, 10, 30), (20, 30, 10, 10)),
        (lambda c: c.polygon(color, [(10, 20), (30, 20), (20, 40.5)]), (20, 40, 10, 30)),
    ):
        canvas = Canvas()
        draw(canvas)
        assert lit(canvas) == want
        level = 200 if alpha != 128 else 200 * 128 / 255
        assert abs(int(canvas.frame().max()) - level) <= 1


def test_width_draws_an_outline():
    for draw, middle in (
        (lambda c: c.rect((9, 9, 9), 30, 40, 20, 20, width=2), (50, 40)),
        (lambda c: c.circle((9, 9, 9), 40, 50, 10, width=2), (50, 40)),
        (lambda c: c.ellipse((9, 9, 9), 30, 40, 20, 20, width=2), (50, 40)),
        (lambda c: c.polygon((9, 9, 9), [(30, 40), (50, 40), (50, 60), (30, 60)], width=2), (50, 40)),
    ):
        canvas = Canvas()
        draw(canvas)
        assert not canvas.frame()[middle].any()
        assert canvas.frame()[40:61, 30:51].any()
    canvas = Canvas()
    canvas.rect((9, 9, 9), 30, 40, 20, 20, radius=8)
    assert not canvas.frame()[40, 30].any() and canvas.frame()[50, 40].all()


def test_alpha_is_blended_over_what_is_below():
    canvas = Canvas((100, 100, 100))
    canvas.rect((200, 0, 100, 51), 0, 0, 50, 50)  # a fifth
    assert (abs(canvas.frame()[10, 10].astype(int) - (120, 80, 100)) <= 1).all()
    assert (canvas.frame()[60, 60] == 100).all()


def test_text_appears_below_and_right_of_its_corner():
    canvas = Canvas()
    canvas.text((255, 255, 255), "HI", 100, 50, size=20)
    top, bottom, left, right = lit(canvas)
    assert 50 <= top < bottom < 70 and 100 <= left < right < 130
    faint = Canvas()
    faint.text((255, 255, 255, 80), 17, 100, 50)
    assert 0 < faint.frame().max() <= 81


# ---- IntRect ----


def test_int_rect_truncates_towards_zero():
    box = IntRect(-0.5, -1.7, 5.9, 3.2)
    assert (box.left, box.top, box.w, box.h) == (0, -1, 5, 3)
    assert (box.right, box.bottom, box.center) == (5, 2, (2, 0))


def test_int_rect_touching_edges_do_not_overlap():
    box = IntRect(10, 20, 5, 5)
    for left, top in ((15, 20), (5, 20), (10, 25), (10, 15), (15, 25)):
        other = IntRect(left, top, 5, 5)
        assert not box.overlaps(other) and not other.overlaps(box)
    for left, top in ((14.9, 20), (6, 20), (10, 24), (10, 16), (14, 24)):
        other = IntRect(left, top, 5, 5)
        assert box.overlaps(other) and other.overlaps(box)
    assert box.overlaps(IntRect(12, 22, 1, 1)) and box.overlaps(IntRect(0, 0, 99, 99))


def test_int_rect_contains_its_left_and_top_edge_only():
    box = IntRect(10, 20, 5, 5)
    assert box.contains(10, 20) and box.contains(14.99, 24.99)
    assert not (box.contains(15, 20) or box.contains(10, 25) or box.contains(9.99, 22) or box.contains(12, 19.99))
