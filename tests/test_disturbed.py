"""Scripts with noise in every second attempt: what the noise is, when there is none, and that scripts get over it."""

import numpy as np

import envs
import experts


def wanted(env, obs, number):
    """Wants half of everything, and the other end of the range at every tenth step."""
    t = 0
    while True:
        yield np.array([0.5, -0.5]) if t % 10 else np.array([3.0, -3.0])
        t += 1


def actions(number: int, ways: int = 1, steps: int = 4000) -> np.ndarray:
    player = experts.disturbed(None, None, number, wanted, ways)
    return np.array([next(player) if t == 0 else player.send((None, {})) for t in range(steps)])


def test_even_attempts_are_the_scripts_own():
    clean = np.array([[0.5, -0.5] if t % 10 else [1.0, -1.0] for t in range(50)])
    np.testing.assert_array_equal(actions(0, steps=50), clean)
    np.testing.assert_array_equal(actions(4, steps=50), clean)


def test_odd_ones_have_normal_noise_around_them():
    """Mean 0, standard deviation 0.1, of what the script wants, cut to the range of actions before."""
    rows = np.arange(4000) % 10 != 0
    off = actions(1) - np.where(rows[:, None], [0.5, -0.5], [1.0, -1.0])
    assert np.abs(off.mean(0)).max() < 0.01 and np.abs(off.std(0) - 0.1).max() < 0.01
    np.testing.assert_array_equal(actions(1), actions(1))  # the attempt's number is its only source of chance
    assert not np.array_equal(actions(1), actions(3))


def test_every_way_is_disturbed_as_often():
    """Attempt k acts in way k % ways: with two ways, 2 and 3 are disturbed, 4 and 5 are not."""
    quiet = [np.array_equal(actions(k, 2, 20)[1], [0.5, -0.5]) for k in range(6)]
    assert quiet == [True, True, False, False, True, True]


def test_a_script_gets_over_it():
    env = envs.make("mw-drawer-close")
    try:
        for number in range(2):
            one = experts.play(env, experts.player_of("mw-drawer-close", "script"), 5, number)
            assert one.success[0] == 1 and np.nanmax(np.abs(one.action)) <= 1
    finally:
        env.close()
