"""evaluation_file.py: what was finished is there after kill -9, and nothing is mixed up or believed unchecked.

Run: pytest tests/test_evaluation_file.py        (about a second on one core)
"""

import copy
import json

import numpy as np
import pytest

import evaluation_file as ef
from episodes import Episode

ERRORS = {"latent": [0.0, 0.1], "reward": [0.2, 0.3], "return": [0.2, 0.5], "mean_reward": 1.5}
PLAYED = {"mw-reach": [Episode(3.5, 1.0, 1.0, 100, 1.0, 0), Episode(2.0, 0.0, 0.0, 100, 1.0, 4, ERRORS)],
          "my_robot:reach": [Episode(1.0, np.nan, np.nan, 7, np.nan, 0)]}  # fmt: skip


@pytest.fixture
def ckpt(tmp_path):
    (tmp_path / "agent.safetensors").write_bytes(b"an agent")
    return tmp_path / "agent.safetensors"


def a_record(ckpt, **settings) -> dict:
    record = ef.new(ckpt, 1234, **{"seed": 5, "planner": "on", "instruction": None, **settings})
    for name in PLAYED:
        about = {"suite": "metaworld", "sentence": "Arm. Reach.", "unseen": False, "stand_in": False}
        about["success_defined"] = True
        record["about"][name], record["planner"][name] = about | {"random": 0.1, "demonstrated": None}, "on"
    ef.put(record, PLAYED)
    ef.put(record, {"mw-reach": PLAYED["mw-reach"][1:]}, 8)
    return record


def test_there_and_back(ckpt, tmp_path):
    record, path = a_record(ckpt), tmp_path / "r.json"
    ef.save(path, record)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN
    found = ef.load(path)
    assert found == record
    back = ef.episodes(found)
    assert back["mw-reach"] == PLAYED["mw-reach"] and ef.episodes(found, 8)["mw-reach"] == PLAYED["mw-reach"][1:]
    np.testing.assert_array_equal(back["my_robot:reach"][0][:6], PLAYED["my_robot:reach"][0][:6])
    assert ef.episodes(found, 3) == {} and [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []
    ef.put(found, {"mw-reach": PLAYED["mw-reach"][:1]})
    assert list(ef.episodes(found)) == list(PLAYED)  # others stay


def test_only_the_same_evaluation_goes_on(ckpt, tmp_path):
    path = tmp_path / "r.json"
    assert ef.go_on(path, a_record(ckpt)) == a_record(ckpt)  # nothing there
    path.touch()
    assert ef.go_on(path, a_record(ckpt)) == a_record(ckpt)  # as mktemp makes it
    ef.save(path, a_record(ckpt))
    before = path.read_bytes()
    assert ef.go_on(path, ef.new(ckpt, 1234, 5, "on", None))["tasks"] == a_record(ckpt)["tasks"]
    for changed in ({"seed": 6}, {"planner": "off"}, {"instruction": "Go"}):
        word = f"--{next(iter(changed))}"
        with pytest.raises(ValueError, match=f"with another value of {word}") as error:
            ef.go_on(path, ef.new(ckpt, 1234, **{"seed": 5, "planner": "on", "instruction": None, **changed}))
        assert "\n" not in str(error.value)
    ckpt.write_bytes(b"another")
    with pytest.raises(ValueError, match="another value of the checkpoint"):
        ef.go_on(path, ef.new(ckpt, 1234, 5, "on", None))
    assert path.read_bytes() == before


def changes():
    def change(*keys, value):
        def apply(record):
            at = record
            for key in keys[:-1]:
                at = at[key]
            at[keys[-1]] = value

        return apply

    yield "no JSON", None
    yield "another program's", change("newt_evaluation", value=None)
    row = ("tasks", "mw-reach", 0)
    for name, value in {"ret": "3", "score": [], "length": 0, "number": -1, "model_error": {"latent": [1]}}.items():
        yield f"{name} {value}", change(*row, name, value=value)
    yield "an episode twice", change(*row, "number", value=4)
    yield "a number beyond numbers", change(*row, "ret", value=1e999)
    yield "more in an episode", change(*row, "html", value="<script>")
    yield "a path for a task", change("planner", "../../x", value="on")
    yield "words about nothing", change("about", "mw-reach", value={})
    yield "a sentence that is none", change("about", "mw-reach", "sentence", value=5)
    yield "no tasks", change("tasks", value=[1])
    yield "open loop of no number", change("open_loop", "x", value={})


@pytest.mark.parametrize("what, apply", changes(), ids=lambda x: x if isinstance(x, str) else "")
def test_what_a_file_says_is_checked(what, apply, ckpt, tmp_path):
    record, path = copy.deepcopy(a_record(ckpt)), tmp_path / "r.json"
    if apply:
        apply(record)
    path.write_text(json.dumps(record) if apply else '{"newt_evaluation": 1,')
    with pytest.raises(ValueError, match=f"^{path} (is|holds)") as error:
        ef.load(path)
    assert "\n" not in str(error.value)
