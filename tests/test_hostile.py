"""Files from anybody: mutated, truncated, crafted. One line each; never a traceback, code run, or much memory.

Run: pytest tests/test_hostile.py        (about half a minute on one core; with -m slow, 5,000 files of each kind)

The files are read in a child process (this file as a program), whose address space ends 1 GB above what its imports
took: whoever asks for more fails, even for memory that is never touched.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_convert import episodes, publish, published_classes, small

import agent_file
import checkpoint
import convert
import demo_format
import eval as evaluation
import newt
import train_config
from buffer import Batch, Buffer
from distributed import World

ROOT = Path(__file__).parent.parent
GIGABYTE = 10**9
DEEP = "[" * 100_000
VALUES = [
    None, True, [], {}, "", "HUGE", "../x", "evilmod:f", "gym:evilmod:X-v0", "two\nlines", "\u2028", "\ud800",
    "x" * 9999, -1, 0, 1, 2, 0.5, 2**31, 2**63, 10**400, -1e-9, 1e308, float("nan"), float("inf"), -float("inf"), "12",
    ["a", "a"], [[1]], {"a": 1}, [0, 2**62], [-1],
]  # fmt: skip
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "?"]


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_file_does_harm(count, tmp_path):
    (tmp_path / "evilmod.py").write_text("open('proof', 'w')")
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    command = [sys.executable, __file__, str(count)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert min(total for _, total in seen.values()) >= min(count, 60) and len(seen) == 4
    assert all(seen[kind][1] == count for kind in ("agent", "checkpoint", "demonstration"))
    assert all(refused > 0.6 * total for refused, total in seen.values()), seen  # the rest was harmless
    assert not (tmp_path / "proof").exists()


# ---------------------------------------------------------------- mutated safetensors files


def places(tree, found: list) -> list:
    """(container, key) of everything in nested dicts and lists."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            places(tree[key], found)
    return found


def spoil(random: np.random.Generator, tree: dict) -> None:
    spots = places(tree, [])
    where, key = spots[random.integers(len(spots))]
    how = random.integers(8)
    if how == 0:
        del where[key]
    elif how == 1 and isinstance(where, dict):
        where["another"] = where[key]
    elif how == 2 and isinstance(where, list):
        where.append(where[key])
    elif where[key] in DTYPES:
        where[key] = DTYPES[random.integers(len(DTYPES))]
    else:
        where[key] = VALUES[random.integers(len(VALUES))]


def mutated(random: np.random.Generator, data: bytes) -> bytes:
    """A safetensors file with something wrong in it: mostly in its header, and the JSON within that."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = random.integers(12)
    if kind == 0:
        return data[: random.integers(len(data))]
    if kind == 1:
        wrong = bytearray(data)
        for place in random.integers(8 + size, size=random.integers(1, 5)):
            wrong[place] = random.integers(256)
        return bytes(wrong)
    if kind == 2:
        numbers = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
        some = random.integers(len(numbers), size=3)
        numbers[some] = random.choice([np.nan, np.inf, -np.inf, -1, 1e38, 5], 3)
        body = numbers.tobytes() + body[len(body) // 4 * 4 :]
    elif kind == 3:
        text = [DEEP, "null", "[1]", "{", '{"version": ' + "9" * 5000 + "}", "\ud800"][random.integers(6)]
        header.setdefault("__metadata__", {"a": ""})
        header["__metadata__"] = dict.fromkeys(header["__metadata__"], text)
    elif kind < 9 and "__metadata__" in header:
        (key, text), *_ = header["__metadata__"].items()
        inner = json.loads(text)
        for _ in range(random.integers(1, 4)):
            spoil(random, inner) if inner else None
        header["__metadata__"][key] = json.dumps(inner)
    else:
        for _ in range(random.integers(1, 3)):
            spoil(random, header) if header else None
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def mutated_text(random: np.random.Generator, data: bytes) -> bytes:
    """Of JSON."""
    if random.integers(4) == 0:
        return [data[: random.integers(len(data))], DEEP.encode(), b"[1]", b"\xff"][random.integers(4)]
    tree = json.loads(data)
    spoil(random, tree)
    return json.dumps(tree).encode()


# ---------------------------------------------------------------- crafted pickles


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def archive(program: bytes, storages: dict[str, bytes] | None = None, method=zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}.items():
            file.writestr(f"archive/{name}", data)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return out.getvalue()


def saved(content, **options) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def view(size: tuple, stride: tuple, offset: int = 0, elements: int = 4, claim: int | None = None) -> bytes:
    """{"model": {"_pi.0.weight": a view of a storage}}, whatever its shape."""

    def number(n: int) -> bytes:
        return pickle.dumps(n, 2)[2:-1]

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += number(elements if claim is None else claim) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    name = b"X\x0c\x00\x00\x00_pi.0.weight"
    return archive(b"\x80\x02}X\x05\x00\x00\x00model}" + name + tensor + b"ss.", {"0": bytes(4 * elements)})


def overlapping() -> bytes:
    """A thousand members of a megabyte in the same megabyte."""
    data = bytearray(archive(b"\x80\x02}.", {"0": bytes(10**6)}))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = data[start:end]
    last = entries[entries.rindex(b"PK\x01\x02") :]
    more = b"".join(bytes(last[:-1]) + bytes([48 + i % 10]) for i in range(1000))
    tail = bytearray(data[end:])
    tail[8:12], tail[12:16] = struct.pack("<HH", 1004, 1004), struct.pack("<I", len(entries) + len(more))
    return bytes(data[:end]) + more + bytes(tail)


def crafted(state: dict, arrays: dict) -> dict[str, bytes]:
    """Name -> file. None of them is an agent or demonstrations."""
    proof = str(Path("proof").absolute())
    calls = {
        "system": Call(os.system, f"touch {proof}"), "eval": Call(eval, f"open({proof!r}, 'w')"),
        "exec": Call(exec, f"open({proof!r}, 'w')"), "open": Call(open, proof, "w"),
        "popen": Call(subprocess.Popen, ["touch", proof]), "import": Call(__import__, "evilmod"),
    }  # fmt: skip
    files = {}
    for name, call in calls.items():
        files |= {f"{name} {protocol}": pickle.dumps(call, protocol) for protocol in (0, 2, 4)}
        files[f"{name} saved"] = saved({"model": {"_pi.0.weight": call}})
    n = 200_000
    programs = {
        "nested tuples as a key": b"\x80\x02})" + b"\x85" * n + b"K\x01s.",
        "nested lists": b"\x80\x02" + b"]" * n + b"a" * (n - 1) + b".",
        "nested tuples": b"\x80\x02)" + b"\x85" * n + b".",
        "doubled tuples as a name": b"\x80\x04)" + b"\x94h\x00\x86" * 60 + b"\x94h\x00\x93.",
        "millions of dicts": b"\x80\x02(" + b"}" * 600_000 + b"t.",
        "millions of marks": b"\x80\x02" + b"(" * 600_000 + b".",
        "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x40\xda\xdd\x01\x85R.",
        "claimed bytearray": b"\x80\x05\x96" + struct.pack("<Q", 8 * GIGABYTE) + b"x.",
        "claimed bytes": b"\x80\x04\x8e" + struct.pack("<Q", 8 * GIGABYTE) + b"x.",
        "claimed text": b"\x80\x04\x8d" + struct.pack("<Q", 8 * GIGABYTE) + b"x.",
        "claimed number": b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"x.",
        "claimed frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "build on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        "call of a dtype": b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.",
        "call of a number": b"\x80\x02K\x05K\x05\x85R.",
        "tensor": b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x40\xda\xdd\x01\x85\x81.",
        "empty": b"",
        "only a stop": b".",
        "stack": b"\x80\x020000.",
        "extension": b"\x80\x02\x82\x01.",
        "long name": b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.",
        "name of two lines": b"\x80\x04\x8c\x04a\n\nb\x8c\x01c\x93.",
    }
    files |= {name: archive(program) for name, program in programs.items()}
    files |= {f"{name} without archive": program for name, program in list(programs.items())[:1]}
    files |= {
        "stride 0": view((10**5, 10**5), (0, 0)), "beyond the end": view((4,), (1,), 1),
        "negative": view((4,), (-1,), 3),
        "huge and empty": view((0, 2**62, 2**62), (1, 1, 1)), "another claim": view((4,), (1,), claim=2**40),
        "huge offset": view((1,), (1,), 2**62), "lengths": view((2, 2), (1,)), "number": view((), ()),
        "deflated": archive(pickle.dumps({}), {"0": bytes(10**8)}, zipfile.ZIP_DEFLATED), "overlapping": overlapping(),
        "complex": saved({"model": {"_pi.0.weight": torch.zeros(2, dtype=torch.complex64)}}),
        "sparse": saved({"model": {"_pi.0.weight": torch.eye(2).to_sparse()}}),
        "meta": saved({"model": {"_pi.0.weight": torch.zeros(2, device="meta")}}),
        "quantised": saved({"model": {"_pi.0.weight": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}}),
        "bfloat16": saved({"model": {name: value.bfloat16() for name, value in state.items()}}),
        "0-d": saved({"model": {name: torch.tensor(1.0) for name in state}}),
        "cyclic": archive(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    }  # fmt: skip
    shared = torch.zeros(10**6, dtype=torch.int8)
    files["one storage for all"] = saved({f"_pi.{i}.weight": shared for i in range(5000)})
    for value in (float("nan"), float("inf"), 10**400, "1", [2.0], -1.0):
        files[f"scale {value!r:.5}"] = saved({"model": state, "scale": value})
    files["embeddings"] = saved({"model": state | {"_task_emb.weight": torch.full((1, 0), np.nan)[:, :0].expand(3, 0)}})
    # demonstrations, which are tried as both
    for name, change in {
        "nan": {"obs": torch.full_like(arrays["obs"], np.nan)}, "actions of 5": {"action": arrays["action"] * 5},
        "scalars": {"reward": torch.tensor(1.0)}, "all scalars": dict.fromkeys(arrays, torch.tensor(1.0)),
        "bfloat16 numbers": {"episode": arrays["episode"].bfloat16() + torch.rand(len(arrays["episode"])).bfloat16()},
        "words": {"obs": "x"}, "lists": {"obs": [1.0]}, "square": {"episode": arrays["episode"][:, None]},
    }.items():  # fmt: skip
        with published_classes() as (cls, _):
            files[f"demonstrations, {name}"] = saved(cls(arrays | change, [1]))
    return files


def shuffled(random: np.random.Generator, data: bytes) -> bytes:
    """A good file of torch.save with some bytes of its pickle changed, in an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    program = bytearray(members["data.pkl"])
    for place in random.integers(len(program), size=random.integers(1, 9)):
        program[place] = random.choice([random.integers(256), *b"}]()(tuaesbRQ.\x81\x85\x93"])
    storages = {name[5:]: value for name, value in members.items() if name.startswith("data/")}
    return archive(bytes(program), storages)


# ---------------------------------------------------------------- the child


class Harm(BaseException):
    """What no `except Exception` may hide."""


def watch(event: str, args: tuple) -> None:
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        raise Harm(f"{event} {args}")
    if (event == "import" and "evilmod" in str(args[0])) or (event == "open" and "proof" in str(args[0])):
        raise Harm(f"{event} {args}")


def refused(call) -> bool:
    """Whether a command would end with its one line; False: it took the file."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            evaluation.run(call)
        return False
    except SystemExit as error:
        text = err.getvalue()
        lines = text.splitlines()
        named = str(Path.cwd()) in text or text.startswith(("error: unknown task", "error: no task"))
        named = named and text.startswith("error: ")
        if error.code != 2 or len(lines) != 1 or not named or len(text) > 2000 or out.getvalue():
            raise Harm(f"exit code {error.code}, {out.getvalue():.500}{text:.1000}") from error
        return True


def make_run(folder: Path, file: Path) -> tuple[newt.Agent, dict[str, bytes]]:
    """A run folder with one checkpoint, and its files."""
    tasks = ["mw-reach", "mw-push"]
    cfg = newt.Config(size="XS", obs_dim=39, action_dim=4, task_dim=3, batch_size=8, num_samples=16, num_elites=4,
                      num_pi=2, iterations=1)  # fmt: skip
    agent = newt.create(cfg, tasks, torch.randn(2, 3), [4, 4], [0.95, 0.95])
    buffer, (h, b) = Buffer(1000, 39, 4), (3, 8)
    for task in (0, 1):
        buffer.add(torch.randn(101, 39), torch.rand(101, 4), torch.rand(101), task)
    for phase in ("pretrain", "online"):
        batch = Batch(torch.randn(h + 1, b, 39), torch.rand(h, b, 4), torch.rand(h, b), torch.arange(b) % 2)
        newt.update(agent, batch, phase)
    own = checkpoint.Own(torch.Generator(), torch.Generator(), episodes={"mw-reach": 3}, dropped={"mw-push": 1})
    played = {name: [[1.0, 0.0, 0.5]] for name in tasks}
    demo = demo_format.load(file, "mw-reach")
    returns, played = {"mw-reach": demo.ret.tolist()}, {"random": played, "pretrained": played}
    state = checkpoint.State("online", 1, 100, 200, returns, played, 0)
    settings = train_config.Train(tasks=",".join(tasks), agent=cfg)
    folder.mkdir()
    files = {"mw-reach": file}, {"mw-reach": demo}
    checkpoint.begin(folder, asdict(settings), *files, agent, state, own, buffer, World())
    files = [*folder.glob("checkpoints/*/*"), *folder.glob("buffer/*/*"), folder / "config.json"]
    return agent, {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def resume(folder: Path, settings: bool = True) -> None:
    """What `train.py --resume` reads before anything is made."""
    if settings:  # takes most of the time
        train_config.parse(["--resume", str(folder)])
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    agent, state = checkpoint.load(folder, torch.device("cpu"), own, World())
    buffer = Buffer(1000, agent.cfg.obs_dim, agent.cfg.action_dim)
    checkpoint.load_buffer(folder, buffer, own, World(), len(agent.tasks))
    checkpoint.find_demos(folder, state.demos, folder)
    check_agent(agent)
    batch = buffer.sample(8, 3, torch.Generator().manual_seed(0))
    assert batch.task.max() < 2 and all(x.isfinite().all() for x in batch)


def check_agent(agent: newt.Agent) -> None:
    """What was believed must be an agent."""
    newt.check(agent.cfg)
    assert all(value.isfinite().all() for value in agent.params.values()) and 0 < agent.q_scale < torch.inf
    assert ((agent.discount >= 0) & (agent.discount <= 1)).all() and agent.emb.isfinite().all()
    assert (agent.mask[:, 0] == 1).all() and all(isinstance(name, str) for name in agent.tasks)


def main(count: int) -> None:
    random, here, seen = np.random.default_rng(0), Path.cwd(), {}
    torch.manual_seed(0)
    arrays = episodes("mw-reach", 2)
    with published_classes() as (cls, _):
        published = saved(cls(arrays, [1]))
    (here / "mw-reach.pt").write_bytes(published)
    demo_format.save(here / "mw-reach.safetensors", convert.demonstrations(here / "mw-reach.pt", "mw-reach"))
    _, run = make_run(here / "run", here / "mw-reach.safetensors")
    agent = run["checkpoints/pretrain-1/agent.safetensors"]
    demonstration = (here / "mw-reach.safetensors").read_bytes()
    state = publish(small(size="XS"), None, None)
    published_agent = saved({"model": state, "scale": torch.tensor(2.0)})
    bad = crafted(state, arrays)
    file = here / "file.safetensors"

    def agents():
        for _ in range(count):
            file.write_bytes(mutated(random, agent))
            yield [lambda: check_agent(agent_file.load(file)[0])]

    def checkpoints():
        for _ in range(count):
            name = random.choice(list(run))
            change = mutated_text if name == "config.json" else mutated
            (here / "run" / name).write_bytes(change(random, run[name]))
            yield [partial(resume, here / "run", name == "config.json")]
            (here / "run" / name).write_bytes(run[name])

    def demonstrations():
        for _ in range(count):
            file.write_bytes(mutated(random, demonstration))
            yield [lambda: demo_format.load(file, "mw-reach")]

    def pickles():
        path, out = here / "walker-walk.pt", here / "out.safetensors"
        cfg = convert.Checkpoint(path, out, overwrite=True)
        names = list(bad)
        for number in range(len(bad) + count // 5):
            changed = shuffled(random, [published, published_agent][number % 2]) if number >= len(bad) else None
            path.write_bytes(changed or bad[names[number]])
            yield [lambda: convert.main(cfg), lambda: convert.demonstrations(path, "mw-reach")]

    resume(here / "run")  # imports what is imported late
    sys.addaudithook(watch)
    if sys.platform.startswith("linux"):
        import resource

        pages, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
        limit = GIGABYTE + (pages - resident) * resource.getpagesize()  # resident would be a gigabyte then
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, files in {"agent": agents, "checkpoint": checkpoints, "demonstration": demonstrations,
                        "pickle": pickles}.items():  # fmt: skip
        results = []
        for calls in files():
            try:
                results.append(all([refused(call) for call in calls]))
            except BaseException:
                name = [*bad, "shuffled"][min(len(results), len(bad))] if kind == "pickle" else ""
                print(f"{kind} {len(results)} {name}", file=sys.stderr)
                raise
        seen[kind] = [sum(results), len(results)]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]))
