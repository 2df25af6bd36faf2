"""report.py: the page holds what was measured, escaped, in one folder; and it works in a browser, where there is one.

Run: pytest tests/test_report.py        (about 20 seconds on one core)
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from test_episodes import an_agent

import agent_file
import envs
import eval as evaluation
import evaluation_file as ef
import report
import tables
from episodes import Episode

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NASTY = '<script src="http://evil.example/x.js"></script>" onmouseover="alert(1)'
TASKS = ["mw-reach", "mw-push", "walker-walk", "pygame-point-maze-var1"]


def a_record(scores: dict[str, list[float]], ckpt: str = "runs/a/agent.safetensors", sentence: str = "") -> dict:
    """An evaluation of episodes with these scores; returns are 1000 times as large."""
    record, known = json.loads(json.dumps(EMPTY | {"ckpt": ckpt})), tables.baselines()
    record["settings"]["agent"] = f"{abs(hash(ckpt)):064x}"
    for name, values in scores.items():
        unseen = ":" in name or envs.TASKS[name].split == "heldout"
        row = {"suite": "own", "sentence": "x", "unseen": True, "stand_in": False, "success_defined": True}
        row |= {"random": None, "demonstrated": None}
        record["about"][name] = row if ":" in name else ef.about(name, envs.TASKS[name].sentence, unseen, known[name])
        record["about"][name]["sentence"] = sentence or record["about"][name]["sentence"]
        record["planner"][name] = "on"
        ef.put(record, {name: [Episode(1000 * x if x == x else 7, float(x > 0.9), x, 100, float(x > 0.5), i)
                               for i, x in enumerate(values)]})  # fmt: skip
    return record


EMPTY = {"newt_evaluation": 1, "step": 1234, "settings": {"seed": 0, "planner": "on", "instruction": None},
         "planner": {}, "about": {}, "tasks": {}, "open_loop": {}}  # fmt: skip
A = {"mw-reach": [1.0] * 10, "mw-push": [1.0, 0.0] * 5, "walker-walk": [0.2, 0.3, 0.4],
     "pygame-point-maze-var1": [0.0, 0.1], "my_robot:reach": [np.nan] * 2}  # fmt: skip
B = {"mw-reach": [0.0] * 10, "mw-push": [1.0, 0.0] * 5, "walker-walk": [0.5, 0.6, 0.7]}


class Page(HTMLParser):
    """Tags with their attributes, the words between them, and no tag that isn't closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of two checkpoints with a film, a run's curves, open loop and a sentence that is code."""
    import imageio.v2 as imageio

    out, films, run = (tmp_path_factory.mktemp(name) for name in ("out", "films", "run"))
    imageio.mimwrite(films / "mw-reach.mp4", np.zeros((10, 224, 224, 3), np.uint8) + 99, fps=30, macro_block_size=1)
    lines = [{"step": 0, "eval/mw-reach/score": 0.0}, {"step": 10, "eval/mw-reach/score": 0.9}]
    lines += [{"step": i, "train/mw-reach/score": i / 20} for i in range(20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [a_record(A, sentence=NASTY), a_record(B, "runs/b/agent.safetensors")]
    records[0]["settings"]["instruction"] = NASTY
    errors = {"latent": [0.0, 0.1], "reward": [0.2, 0.3], "return": [0.2, 0.5], "mean_reward": 1.0}
    for k in (1, 2):
        cut = {name: row[:k] for name, row in errors.items() if name != "mean_reward"} | {"mean_reward": 1.0}
        ef.put(records[0], {"mw-reach": [Episode(9.0, 1.0, 1.0, 100, 1.0, 0, cut)]}, k)
    report.write(out, records, films, run)
    return out


def test_nothing_is_outside_of_the_folder(folder):
    page = Page(folder / "index.html")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len({*ids})
    links = [attrs[key] for _, attrs in page.tags for key in ("href", "src", "poster") if attrs.get(key)]
    assert len(links) > 20
    for link in links:
        parts = urlparse(link)
        assert not parts.scheme or link == "data:,", link
        assert not parts.netloc
        if parts.path and not parts.scheme:
            assert (folder / unquote(parts.path)).is_file(), link
        assert not parts.fragment or unquote(parts.fragment) in ids, link
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|srcset", page.text)
    assert [attrs for attrs in page.all("script")] == [{}]  # one, of the page's own
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    report.require_ours(folder)  # all that was written is known to be ours


def test_words_of_files_are_words(folder):
    page = Page(folder / "index.html")
    assert page.text.count("evil.example") >= 3 and '<script src="http' not in page.text
    assert any(NASTY in data for data in page.words)


def test_nothing_moves_while_it_loads(folder):
    """Pictures and films have their size before they are there, and load when they are looked at."""
    page = Page(folder / "index.html")
    images, films = page.all("img"), page.all("video")
    assert len(images) == 5 + 1 + 1 and len(films) == 1  # returns of each task, a curve, the open loop
    assert all(x["loading"] == "lazy" and x["alt"] and int(x["width"]) and int(x["height"]) for x in images)
    assert films[0]["preload"] == "none" and "autoplay" not in films[0] and int(films[0]["height"])
    assert (folder / films[0]["src"]).read_bytes()[4:8] == b"ftyp"
    for svg in (folder / "plots").glob("*.svg"):
        text = svg.read_text()
        assert not re.search(r'(href|src)="(?!#)', re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)), svg


def test_it_can_be_used_without_a_mouse(folder):
    page = Page(folder / "index.html")
    assert all("tabindex" in attrs for tag, attrs in page.tags if attrs.get("class") == "scroll")
    heads = re.search(r'<table id="tasks">\n<thead><tr>(.*?)</tr>', page.text, re.S)[1]
    assert heads.count("<th") == heads.count('<button type="button">') > 10
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "a" and "task-" in attrs["href"]
               and attrs.get("style"))  # fmt: skip
    assert all(re.search(rf"<label>[^<]*<\w+[^>]* id=\"{name}\"", page.text) for name in ("find", "suite", "unseen"))
    assert page.all("html") == [{"lang": "en"}] and "prefers-color-scheme: dark" in page.text


def test_numbers_by_hand():
    rows = report.rows_of(a_record(A))
    assert rows["mw-push"]["score"].mean == 0.5 and rows["mw-reach"]["score"].low == pytest.approx(0.7225, abs=1e-4)
    assert np.isnan(rows["walker-walk"]["success"].mean)  # its flag is always 0
    assert rows["walker-walk"]["ret"].mean == pytest.approx(300)
    suites = report.suites_of(rows)
    assert suites["metaworld"]["score"].mean == 0.75 and suites["metaworld"]["tasks"] == 2
    assert suites["all tasks"]["score"].mean == pytest.approx((1 + 0.5 + 0.3 + 0.05) / 4)
    assert suites["metaworld"]["demonstrated"] == 1.0 and np.isnan(suites["own"]["random"])


def test_worst_regressions_come_first():
    found = report.differences(report.rows_of(a_record(A)), report.rows_of(a_record(B)))
    assert [row["name"] for row in found] == ["mw-reach", "mw-push", "walker-walk"]
    assert [round(row["by"].mean, 3) for row in found] == [-1.0, 0.0, 0.3]
    assert [row["sure"] for row in found][:2] == [True, False]
    # Newcombe's interval of 0 of 10 against 10 of 10
    assert found[0]["by"].high == pytest.approx(-1 + np.hypot(0.2775, 0.2775), abs=1e-3)


def test_the_page_says_so(folder):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", (folder / "index.html").read_text(encoding="utf-8")))
    assert "B against A, worst first" in text and "−1.000 *" in text and "5 tasks of 4 suites" in text
    assert "score as share of closed loop" in text and "my_robot:reach" in text


def test_a_page_in_a_foreign_folder_is_refused(folder, tmp_path):
    def refused(path: Path, message: str, *also: Path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, OSError), match=message) as error:
            report.require_ours(path, also)
        assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before

    report.require_ours(tmp_path / "new")
    report.require_ours(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("<h1>my home page</h1>")
    refused(mine, "is no report of this program")
    refused(mine / "index.html", "is a file")
    (mine / "index.html").write_text((folder / "index.html").read_text())
    report.require_ours(mine)
    (mine / "thesis.tex").touch()
    refused(mine, "holds something else than a report, thesis.tex")
    report.require_ours(mine, (mine / "thesis.tex",))
    with pytest.raises(ValueError, match="is no folder of a run"):
        report.read_curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="is no folder of a run"):
        report.read_curves(tmp_path)


def test_a_command_that_compares(tmp_path, monkeypatch, capsys):
    """Two agents side by side; what was played is not played again; a foreign folder and --json are refused."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        agent = an_agent(["mujoco-reacher"])
        agent.params["pi.2.bias"].data += i
        agent_file.save(tmp_path / f"{name}.safetensors", agent, step=i)
    cfg = evaluation.Eval((Path("a.safetensors"), Path("b.safetensors")), "mujoco-reacher,pygame-point-maze-var1", 2,
                          planner="off", report=Path("out"), workers=1)  # fmt: skip
    evaluation.main(cfg)
    out = capsys.readouterr().out
    assert out.count("mean of tasks") == 2 and out.endswith("page  out/index.html\n")
    page = Page(Path("out/index.html"))
    assert "B against A, worst first" in page.words and len(list(Path("out").glob("evaluation-*.json"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr("observe.VectorEnv", lambda *_, **__: pytest.fail("played again"))
        evaluation.main(cfg)
    for change, message in (
        ({"json": Path("r.json")}, "--json is for a single checkpoint"),
        ({"report": tmp_path}, "holds something else than a report, a.safetensors"),
        ({"run": Path("x"), "report": None}, "--run is for the page"),
        ({"run": Path("x")}, "is no folder of a run"),
        ({"ckpt": (Path("a.safetensors"), Path("c.safetensors"))}, "no checkpoint at c.safetensors"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            evaluation.main(evaluation.replace(cfg, **change))


# ---- in a browser ----


class Browser:
    """A headless Chromium that is spoken to through pipes (its DevTools protocol): JSON, ended by a zero byte."""

    def __init__(self, folder: str, width: int):
        from_us, to_us = os.pipe(), os.pipe()

        def place() -> None:  # it reads from descriptor 3 and writes to 4
            ours = os.dup(from_us[0]), os.dup(to_us[1])  # out of the way of 3 and 4
            for end, number in zip(ours, (3, 4), strict=True):
                os.dup2(end, number)

        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder}",
                 f"--window-size={width},900", "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen([CHROMIUM, *flags], preexec_fn=place, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(from_us[0])
        os.close(to_us[1])
        self.out, self.into = os.fdopen(from_us[1], "wb", 0), os.fdopen(to_us[0], "rb")
        self.events, self.last, self.session = [], 0, {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def _read(self) -> dict:
        text = bytearray()
        while (byte := self.into.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text)

    def __call__(self, method: str, **params) -> dict:
        self.last += 1
        message = {"id": self.last, "method": method, "params": params, **self.session}
        self.out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.last:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def load(self, url: str) -> None:
        self("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def seen(self, method: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") == method]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt install chromium)")
@pytest.mark.skipif(os.name != "posix", reason="pipes with numbers of their own")
@pytest.mark.parametrize("width", [360, 1600])
def test_in_a_browser(folder, width):
    """Sort, filter, open a task, play its film: no complaint, and no request that leaves the folder."""
    script = (Path(__file__).parent / "page_acts.js").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile, width)
        try:
            browser.load(f"file://{folder}/index.html")
            done = browser("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
            shot = browser("Page.captureScreenshot", format="png")["data"]
        finally:
            browser.process.kill()
            browser.process.wait()
    check_acts(json.loads(done["result"]["value"]), folder)
    assert len(shot) > 10_000
    assert not browser.seen("Runtime.exceptionThrown") and not browser.seen("Runtime.consoleAPICalled")
    assert not [entry for entry in browser.seen("Log.entryAdded") if entry["entry"]["level"] == "error"]
    asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert asked and all(url.startswith((f"file://{folder}/", "data:", "about:")) for url in asked)


def check_acts(found: dict, folder: Path, plays: str = "plays") -> None:
    """What page_acts.js must find on the page of `folder`."""
    assert len(found["all"]) == found["again"] == 5 and found["focusable"] > 30
    for key, order in (("up", "ascending"), ("down", "descending")):
        numbers = [float(x) for x in found[key][0] if x]
        assert numbers == sorted(numbers, reverse=key == "down") and found[key][1] == order and numbers
        assert found[key][0][-1] == "" or all(found[key][0])
    assert {*found["reach"]} == {"mw-reach", "my_robot:reach"} and found["count"] == "2 of 5 tasks"
    assert {*found["suite"]} == {"mw-reach", "mw-push"}
    assert found["closed"] == 0 and found["open"] == ["task-mw-reach"] and found["focused"] == "SUMMARY"
    assert not found["wide"]  # only tables scroll sideways
    assert found["preload"] == "none" and found["film"] == plays
    assert all(url.startswith(f"file://{folder}/") for url in found["loaded"])
