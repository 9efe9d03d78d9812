"""Interpret a pickle as data: the opcodes that build plain values, and no others.

A pickle is a program for a stack machine. Python's own machine calls the objects that
the program names and hands them states; this one has values of its own (numbers, text,
bytes, lists, tuples, dicts, sets) and `StandIn`s, and calls nothing else. A stand-in
says what each opcode does with it; by default every opcode is refused. So no class of
numpy, or of another library, ever receives a state from a file.
"""

import codecs
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from handjax.errors import UserError, shown
from handjax.io import limits

MAX_DEPTH = 100
"""Levels of containers in containers; readers recurse into what they got."""

_GROWTH = 8
"""Times the bytes of the pickle that its arrays and texts may have: each is made of
bytes that are in the file, and a few of them of the same ones."""

_ALLOWANCE = 1 << 20
"""Bytes, or elements, that any pickle may make."""

_CHUNK = 1 << 24
"""Bytes that are read at once: lengths in a file are not believed before."""

_MAX_INT_BYTES = 1024

_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


class RefusedPickleError(UserError):
    """A pickle asks for something that its format does not need."""


class StandIn:
    """Stands for an object of some library; every opcode on it is refused.

    Subclasses allow what their format needs. Each method returns what stands in the
    place of the object afterwards.
    """

    __slots__ = ()

    def __str__(self):
        return type(self).__name__

    def refuse(self, what: str) -> NoReturn:
        """Raise the error for an opcode that does `what`."""
        raise RefusedPickleError(f"a pickle tried to {what} {self}")

    def called(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return the result of a call (REDUCE)."""
        self.refuse("call")

    def new(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return a new object of a class (NEWOBJ, NEWOBJ_EX)."""
        self.refuse("make a new object of")

    def with_state(self, state: Any) -> Any:
        """Return the object with a state (BUILD)."""
        self.refuse("set the state of")

    def add(self, items: list[Any]) -> None:
        """Take the items of APPEND, APPENDS or ADDITEMS."""
        self.refuse("add items to")

    def set_items(self, pairs: list[tuple[Any, Any]]) -> None:
        """Take the items of SETITEM or SETITEMS."""
        self.refuse("set items of")


class Unfinished(StandIn):
    """An object of which only the state says what it is; it exists once until then."""

    __slots__ = ("places",)

    def __init__(self):
        self.places: list[int] = []
        """Where it stands in the memo: what replaces it has to stand there, too."""


class Function(StandIn):
    """Stands for a function, or for a class that is only called."""

    __slots__ = ("_function", "_name", "is_view")

    def __init__(self, name: str, function: Callable[..., Any], is_view: bool = False):
        """Stand for `name`.

        Args:
            name: In messages.
            function: Ours, called instead.
            is_view: Whether what it returns takes no memory of its own.
        """
        self._name, self._function, self.is_view = name, function, is_view

    def __str__(self):
        return self._name

    def called(self, args, kwargs):
        """Call our function."""
        return self._function(*args, **kwargs)


class Marker(StandIn):
    """Stands for a class that a pickle passes around but must not call."""

    __slots__ = ("_name",)

    def __init__(self, name: str):
        self._name = name

    def __str__(self):
        return f"{self._name} itself"


def key(value: Any) -> Any:
    """Return a key of a dict or an element of a set after checking it.

    Numbers of any length and nested tuples take time without end to compare or to hash.

    Raises:
        UserError: It is not a plain value.
    """
    known = type(value) in _SCALARS or isinstance(value, (np.number, StandIn))
    if not known or (type(value) is int and value.bit_length() > 64):
        raise UserError(f"a key or set element is {shown(value)}")
    return value


def run(
    file: Any,
    find_global: Callable[[str, str], Any],
    persistent_load: Callable[[Any], Any],
    max_opcodes: int,
) -> Any:
    """Interpret the next pickle of an open file, up to protocol 5.

    Args:
        file: Open, in binary; stands behind the pickle afterwards.
        find_global: Returns the stand-in of a module and name, or raises.
        persistent_load: Returns the object of a persistent id, or raises.
        max_opcodes: Largest length of the program.

    Raises:
        RefusedPickleError: It uses an object in a way that is not allowed.
        UserError: It exceeds a limit.
        Exception: It is damaged.
    """
    return _Machine(file, find_global, persistent_load).run(max_opcodes)


class _Machine:
    def __init__(self, file, find_global, persistent_load):
        self._read, self._readline = file.read, file.readline
        self._find_global, self._persistent_load = find_global, persistent_load
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._bytes_read = self._bytes_made = 0
        self._unfinished = 0
        self._containers_left = limits.PICKLE_CONTAINERS.value

    def run(self, max_opcodes: int) -> Any:
        read, opcodes = self._read, _OPCODES
        for number in range(max_opcodes):
            opcode = read(1)
            if opcode == b".":
                self._bytes_read += number
                return self._result()
            opcodes[opcode](self)
        raise _exceeded("steps", limits.PICKLE_STEPS)

    def _result(self) -> Any:
        (value,) = self.stack
        if self._unfinished:
            raise UserError("an array or its type without a content")
        _check_extent(value, _GROWTH * self._bytes_read + _ALLOWANCE)
        return value

    # --- reading --------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Read exactly so many bytes."""
        self._bytes_read += count
        if count <= _CHUNK:
            data = self._read(count)
        else:
            parts = bytearray()
            while len(parts) < count:
                part = self._read(min(_CHUNK, count - len(parts)))
                if not part:
                    break
                parts += part
            data = bytes(parts)
        if len(data) != count:
            raise EOFError("it ends too early")
        return data

    def number(self, form: struct.Struct) -> Any:
        self._bytes_read += form.size
        return form.unpack(self._read(form.size))[0]

    def line(self, most: int = 4096) -> bytes:
        """Read the rest of a line: a name or a number."""
        line = self._readline(most)
        if line[-1:] != b"\n":
            raise EOFError("it ends too early")
        self._bytes_read += len(line)
        return line[:-1]

    # --- stack and memo -------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        self._containers_left -= 1
        if self._containers_left < 0:
            raise _exceeded("containers", limits.PICKLE_CONTAINERS)
        self.stack.append(value)

    def after_mark(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        self._marks.append(len(self.stack))

    def pop(self) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self.stack.pop()

    def put(self, place: int) -> None:
        value = self._memo[place] = self.stack[-1]
        if isinstance(value, Unfinished):
            value.places.append(place)

    def get(self, place: int) -> None:
        self.push(self._complete(self._memo[place]))

    def duplicate(self) -> None:
        self.push(self._complete(self.stack[-1]))

    def memoize(self) -> None:
        self.put(len(self._memo))

    def _complete(self, value: Any) -> Any:
        if isinstance(value, Unfinished):
            raise UserError("an array or its type is used before it has a content")
        return value

    # --- objects --------------------------------------------------------------------

    def push_made(self, value: Any, is_view: bool = False) -> None:
        """Push what a stand-in made, and count its bytes."""
        if isinstance(value, Unfinished):
            self._unfinished += 1
        elif isinstance(value, (bytes, bytearray, set, frozenset)):
            self._bytes_made += len(value)
        elif isinstance(value, np.ndarray) and not is_view:
            self._bytes_made += value.nbytes
        if self._bytes_made > _GROWTH * self._bytes_read + _ALLOWANCE:
            raise UserError("it makes many times more than it holds")
        self.stack.append(value)

    def find_global(self, module: str, name: str) -> None:
        self.push(self._find_global(module, name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str:
            raise UserError("the name of a global is not text")
        self.find_global(module, name)

    def call(self, method: str, args: Any, kwargs: Any) -> None:
        target = _object(self.stack.pop(), "call")
        if type(args) is not tuple or type(kwargs) is not dict:
            raise UserError("arguments of a call are not a tuple and a dict")
        is_view = isinstance(target, Function) and target.is_view
        self.push_made(getattr(target, method)(args, kwargs), is_view)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack.pop()
        made = _object(target, "set the state of").with_state(state)
        if isinstance(target, Unfinished):
            self._unfinished -= 1
            for place in target.places:
                self._memo[place] = made
        self.push_made(made)

    def persistent(self, pid: Any) -> None:
        self.push(self._persistent_load(pid))

    def add(self, items: list[Any], kind: type) -> None:
        target = self.stack[-1]
        if type(target) is not kind:
            _object(target, "add items to").add(items)
        elif kind is set:
            target.update(map(key, items))
        else:
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise UserError("a key without a value")
        target, pairs = self.stack[-1], zip(items[::2], items[1::2], strict=True)
        if type(target) is dict:
            for name, value in pairs:
                if type(name) is not str:
                    key(name)
                target[name] = value
        else:
            _object(target, "set items of").set_items(list(pairs))

    def pop_last(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("its stack is empty")
        del self.stack[-count:]
        return items

    def integer(self, data: bytes) -> None:
        if len(data) > _MAX_INT_BYTES:
            raise UserError(f"a whole number of more than {_MAX_INT_BYTES} bytes")
        self.push(int.from_bytes(data, "little", signed=True))


def _exceeded(what: str, limit: limits.Limit) -> UserError:
    return UserError(
        f"it has more than {limit.value:,} {what}. If you trust the file, raise "
        f"{limit.variable}"
    )


def _object(target: Any, what: str) -> StandIn:
    if not isinstance(target, StandIn):
        raise RefusedPickleError(f"a pickle tried to {what} {shown(target)}")
    return target


_U1, _U2, _U4, _U8 = (struct.Struct(f"<{code}") for code in "BHIQ")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")


def _text(machine: _Machine, size: struct.Struct) -> None:
    machine.push(machine.take(machine.number(size)).decode("utf-8", "surrogatepass"))


def _latin(machine: _Machine, size: struct.Struct) -> None:
    """Push a string of Python 2, whose bytes `latin1` keeps as they are."""
    machine.push(machine.take(machine.number(size)).decode("latin1"))


def _bytes(machine: _Machine, size: struct.Struct) -> None:
    machine.push(machine.take(machine.number(size)))


def _quoted(machine: _Machine) -> None:
    line = machine.line(-1)
    if len(line) < 2 or line[0] != line[-1] or line[0] not in b"\"'":
        raise UserError("text without quotes")
    machine.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))


def _decimal(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line.removesuffix(b"L"))


def _frame(machine: _Machine) -> None:
    machine.number(_U8)  # a hint for reading ahead


def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number(_U1)) > 5:
        raise UserError(f"protocol {protocol}; 0 to 5 are known")


def _refused(name: str) -> Callable[[_Machine], None]:
    def refuse(machine: _Machine) -> None:
        raise RefusedPickleError(f"a pickle uses the opcode {name}")

    return refuse


_OPCODES: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    # stack and memo
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": lambda m: m.after_mark(),
    b"2": _Machine.duplicate,
    b"p": lambda m: m.put(_decimal(m.line())),
    b"q": lambda m: m.put(m.number(_U1)),
    b"r": lambda m: m.put(m.number(_U4)),
    b"\x94": _Machine.memoize,
    b"g": lambda m: m.get(_decimal(m.line())),
    b"h": lambda m: m.get(m.number(_U1)),
    b"j": lambda m: m.get(m.number(_U4)),
    # plain values
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_decimal(m.line())),
    b"L": lambda m: m.push(_decimal(m.line())),
    b"K": lambda m: m.push(m.number(_U1)),
    b"M": lambda m: m.push(m.number(_U2)),
    b"J": lambda m: m.push(m.number(_I4)),
    b"\x8a": lambda m: m.integer(m.take(m.number(_U1))),
    b"\x8b": lambda m: m.integer(m.take(m.number(_U4))),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.number(_F8)),
    b"S": _quoted,
    b"T": lambda m: _latin(m, _U4),
    b"U": lambda m: _latin(m, _U1),
    b"V": lambda m: m.push(m.line(-1).decode("raw-unicode-escape")),
    b"\x8c": lambda m: _text(m, _U1),
    b"X": lambda m: _text(m, _U4),
    b"\x8d": lambda m: _text(m, _U8),
    b"C": lambda m: _bytes(m, _U1),
    b"B": lambda m: _bytes(m, _U4),
    b"\x8e": lambda m: _bytes(m, _U8),
    b"\x96": lambda m: m.push(bytearray(m.take(m.number(_U8)))),
    # containers
    b"]": lambda m: m.push_container([]),
    b"}": lambda m: m.push_container({}),
    b")": lambda m: m.push(()),
    b"\x8f": lambda m: m.push_container(set()),
    b"l": lambda m: m.push_container(m.after_mark()),
    b"t": lambda m: m.push_container(tuple(m.after_mark())),
    b"\x85": lambda m: m.push_container(tuple(m.pop_last(1))),
    b"\x86": lambda m: m.push_container(tuple(m.pop_last(2))),
    b"\x87": lambda m: m.push_container(tuple(m.pop_last(3))),
    b"\x91": lambda m: m.push_container(frozenset(map(key, m.after_mark()))),
    b"d": lambda m: _dict(m, m.after_mark()),
    b"a": lambda m: m.add(m.pop_last(1), list),
    b"e": lambda m: m.add(m.after_mark(), list),
    b"\x90": lambda m: m.add(m.after_mark(), set),
    b"s": lambda m: m.set_items(m.pop_last(2)),
    b"u": lambda m: m.set_items(m.after_mark()),
    # objects
    b"c": lambda m: m.find_global(m.line().decode(), m.line().decode()),
    b"\x93": _Machine.stack_global,
    b"R": lambda m: m.call("called", m.stack.pop(), {}),
    b"\x81": lambda m: m.call("new", m.stack.pop(), {}),
    b"\x92": lambda m: m.call("new", *m.pop_last(2)),
    b"b": _Machine.build,
    b"P": lambda m: m.persistent(m.line().decode("ascii")),
    b"Q": lambda m: m.persistent(m.stack.pop()),
    # never needed
    b"i": _refused("INST"),
    b"o": _refused("OBJ"),
    b"\x82": _refused("EXT1"),
    b"\x83": _refused("EXT2"),
    b"\x84": _refused("EXT4"),
    b"\x97": _refused("NEXT_BUFFER"),
    b"\x98": _refused("READONLY_BUFFER"),
}


def _dict(machine: _Machine, items: list[Any]) -> None:
    machine.push_container({})
    machine.set_items(items)


def _check_extent(value: Any, most: int) -> None:
    """Check depth and size of a value, whose parts may stand in it many times.

    A list that holds another one twice, and so on for 30 levels, is small until it is
    walked.
    """
    finished: dict[int, tuple[int, int]] = {}  # elements and levels of containers
    path: set[int] = set()
    stack = [value] if _parts(value) is not None else []
    while stack:
        top, parts = stack[-1], _parts(stack[-1])
        here = id(top)
        if here in finished:
            stack.pop()
            continue
        inner = [p for p in parts if type(p) not in _SCALARS and _parts(p) is not None]
        if here not in path:
            path.add(here)
            if any(id(part) in path for part in inner):
                raise UserError("a container holds itself")
            if len(path) > MAX_DEPTH:
                raise UserError(f"containers of more than {MAX_DEPTH} levels")
            stack += [part for part in inner if id(part) not in finished]
            if inner:
                continue
        stack.pop()
        path.discard(here)
        below = [finished[id(part)] for part in inner]
        size = len(parts) + sum(count for count, _ in below)
        depth = 1 + max((levels for _, levels in below), default=0)
        if size > most:
            raise UserError("its parts stand in it many times over")
        if depth > MAX_DEPTH:
            raise UserError(f"containers of more than {MAX_DEPTH} levels")
        finished[here] = size, depth


def _parts(value: Any) -> Any:
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return value
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.ravel().tolist()
    return getattr(value, "parts", None) if isinstance(value, StandIn) else None
