"""Files of torch.save, read without running them: tensors, containers, numbers and words. Imports torch only.

Such a file is an archive of a pickle and the bytes of its tensors. A pickle is a program for a machine with a stack;
the machine here has only the instructions that data needs. It calls nothing but functions of this file, which check
what they are given; a file that asks for more is refused by that name, and nothing of it has run.

Memory is bounded by the file's size: archives that are compressed, or whose members overlap, are refused; a tensor has
no more elements than its bytes hold (no stride of 0), all tensors together no more than the file has bytes; keys of
dicts are words and short numbers (comparing nested ones would overflow the interpreter's own stack); and one of the
millions of empty containers that a pickle can ask for costs sixty times its bytes, so instructions are counted.

    content = read(Path("soup-L.pt"))                      tuples for torch.Size, None for torch.device
Left out: the format before torch 1.6, which is no archive, and all that isn't needed: sets, bytes, sparse tensors ...
Test: pytest tests/test_convert.py tests/test_hostile.py
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MAX_INSTRUCTIONS = 500_000  # published agents need some thousands; each may cost about 200 bytes
DTYPES = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
          "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
          "Bool": torch.bool}  # fmt: skip
VALUES = {  # instructions that push the value that stands in them
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Refused(Exception):
    """The file asks for something that is no part of such files: its name."""


def read(path: Path, allowed: dict[str, Callable] | None = None):
    """Content of a file of torch.save, tensors on the CPU.

    allowed: name in the pickle -> function called instead, or class made empty, whose `state` is then set.
    FileNotFoundError or ValueError, one line: missing, damaged, not such a file, or one that asks for more.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start != b"PK\x03\x04":
                _Machine({}, 0, allowed or {}).run(start + file.read(2**26))  # for the name that it asks for
                raise ValueError("a pickle without an archive")
        with zipfile.ZipFile(path) as archive:
            size, members = path.stat().st_size, archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > size:
                raise ValueError("its members are compressed or overlap")
            names = archive.namelist()
            program = next((name for name in names if name.split("/")[1:] == ["data.pkl"]), "without data.pkl")
            folder = program.partition("/")[0]
            if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
                raise ValueError("another byte order")
            prefix = f"{folder}/data/"
            storages = {name.removeprefix(prefix): archive.read(name) for name in names if name.startswith(prefix)}
            return _Machine(storages, size, allowed or {}).run(archive.read(program))
    except Refused as error:
        name = " ".join(str(error).split())
        raise ValueError(f"{path} is refused: it asks for {name:.100}, which is no part of such a file") from error
    except Exception as error:  # damaged bytes can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged, or no file of torch.save ({reason:.100})") from error


class _Machine:
    """Runs one pickle. storages: the bytes of tensors, by key; budget: elements that all tensors may have."""

    def __init__(self, storages: dict[str, bytes], budget: int, allowed: dict[str, Callable]):
        self.storages, self.budget = storages, budget
        self.known = {f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()}
        self.known |= {str(dtype): dtype for dtype in DTYPES.values()}
        self.known |= {
            "collections.OrderedDict": lambda: {},
            "torch.Size": lambda size: size,
            "torch.device": lambda *_: None,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda value, *_: value,
            **allowed,
        }
        self.classes = {value for value in allowed.values() if isinstance(value, type)}
        self.callable = {id(value) for value in self.known.values() if callable(value)}

    def run(self, program: bytes):
        """The value that the pickle leaves. Refused, or any other exception for a damaged one."""
        stack, marks, memo = [], [], {}

        def cut() -> list:
            """What lies above the last mark."""
            place = marks.pop()
            items = stack[place:]
            del stack[place:]
            return items

        def insert(pairs: list) -> None:
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if type(key) is not str and not (type(key) is int and key.bit_length() < 64):
                    raise ValueError(f"a {type(key).__name__} as a key")
                of(dict)[key] = value

        def of(kind: type):
            """The topmost value, which must be of this type."""
            if type(stack[-1]) is not kind:
                raise ValueError(f"{type(stack[-1]).__name__} instead of {kind.__name__}")
            return stack[-1]

        for count, (instruction, value, _) in enumerate(pickletools.genops(program)):
            if count > MAX_INSTRUCTIONS:
                raise ValueError("too many instructions")
            match instruction.name:
                case name if name in VALUES:
                    stack.append(value)
                case name if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "TUPLE":
                    stack.append(tuple(cut()))
                case "LIST":
                    stack.append(cut())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    n = int(instruction.name[-1])
                    stack[-n:] = [tuple(stack[-n:])]
                case "DICT":
                    pairs = cut()
                    stack.append({})
                    insert(pairs)
                case "APPEND":
                    item = stack.pop()
                    of(list).append(item)
                case "APPENDS":
                    items = cut()
                    of(list).extend(items)
                case "SETITEM":
                    pair = [stack.pop(), stack.pop()][::-1]
                    insert(pair)
                case "SETITEMS":
                    insert(cut())
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "GLOBAL":
                    stack.append(self.find(value.replace(" ", ".")))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.find(".".join((module, name))))
                case "REDUCE" | "NEWOBJ":
                    args, function = of(tuple), stack[-2]
                    if id(function) not in self.callable:
                        raise ValueError("a call of a value")
                    stack[-2:] = [function(*args)]
                case "BUILD":
                    state = stack.pop()
                    if type(stack[-1]) in self.classes:
                        stack[-1].state = state
                    else:
                        of(dict)  # attributes of an OrderedDict: nobody needs them
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case "STOP":
                    return stack.pop()
                case name:
                    raise ValueError(f"instruction {name}")
        raise ValueError("no end")

    def find(self, name: str):
        if name not in self.known:
            raise Refused(name)
        return self.known[name]

    def storage(self, key) -> Tensor:
        """What a persistent id stands for: the elements of a storage, (N,)."""
        kind, dtype, key, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise ValueError("no storage")
        data = self.storages[key]
        if isinstance(data, bytes):
            data = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            self.storages[key] = data
        if count * dtype.itemsize != len(data):
            raise ValueError("a storage of another size")
        return data != 0 if dtype == torch.bool else data.view(dtype)

    def tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
        """A view of a storage, if each of its elements has its own place there."""
        numbers = (offset, *size, *stride)
        if not isinstance(storage, Tensor) or not all(type(x) is int and 0 <= x < 2**48 for x in numbers):
            raise ValueError("no tensor")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self.budget -= count
        if count > storage.numel() or (count and last >= storage.numel()) or self.budget < 0:
            raise ValueError("a tensor larger than its file")
        return storage.as_strided(size, stride, offset)
