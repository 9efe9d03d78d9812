"""Pickles as hostile programs: every opcode on every stand-in, and what never ends."""

import io
import pickle
import time

import numpy as np
import pytest

from handjax.errors import UserError, shown
from handjax.io import limits, safe_pickle, torch_pickle
from handjax.io.pickle_machine import Function, RefusedPickleError

ALLOWED = safe_pickle.plain_globals() | torch_pickle._allowed()
ALLOWED |= {("chumpy.ch", "Ch"): safe_pickle.holder("Ch")}
SETTING = ("yacs.config", "CfgNode")
GLOBALS = {f"{module}.{name}": (module, name) for module, name in [*ALLOWED, SETTING]}

# On the stack: an object; what the opcode takes comes after it.
MUTATIONS = {
    "BUILD dict": b"}b",
    "BUILD tuple": b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    "BUILD slots": b"N}U\x01aK\x01s\x86b",
    "APPEND": b"K\x01a",
    "APPENDS": b"(K\x01K\x02e",
    "SETITEM": b"U\x01aK\x01s",
    "SETITEMS": b"(U\x01aK\x01u",
    "ADDITEMS": b"(K\x01\x90",
}
CALLS = {
    "REDUCE list": b"]R",
    "NEWOBJ": b")\x81",
    "NEWOBJ_EX": b")}\x92",
    "NEWOBJ_EX state": b")}U\x05stateK\x01s\x92",
}
# Refused whatever they are used on.
NEVER = {
    "INST": b"(inumpy\ndtype\n",
    "OBJ": b"(cnumpy\ndtype\no",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"]\x98",
    "PERSID": b"Pname\n",
    "BINPERSID": b"U\x01aQ",
    "attribute": b"\x8c\x05numpy\x8c\x0endarray.tofile\x93",
    "module": b"\x8c\x02os\x8c\x06system\x93",
    "GLOBAL of numbers": b"K\x01K\x02\x93",
}


def read(content: bytes, allowed=ALLOWED):
    file = io.BytesIO(b"\x80\x05" + content + b".")
    return safe_pickle.load_from(file, allowed, "x.pkl", None, torch_pickle._setting)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize("place", GLOBALS.values(), ids=GLOBALS)
def test_no_opcode_changes_what_stands_for_a_global(place):
    """Settings of other programs swallow everything and keep nothing."""
    for name, code in (MUTATIONS | CALLS).items():
        content = named(*place) + code
        holds = place == ("chumpy.ch", "Ch") and name in ("NEWOBJ", "NEWOBJ_EX")
        if place == SETTING and name != "REDUCE list":
            assert read(content).__slots__ == ("name",)
        elif holds:
            assert read(content).state == {}
        else:
            with pytest.raises(UserError):
                read(content)


@pytest.mark.parametrize("name", NEVER)
def test_opcodes_that_no_format_needs_are_refused(name):
    with pytest.raises(UserError):
        read(NEVER[name])


MADE = {
    "dtype": named("numpy", "dtype") + b"U\x02f8K\x00K\x01\x87R",
    "array": named("numpy.core.multiarray", "_reconstruct")
    + named("numpy", "ndarray")
    + b"K\x00\x85U\x01b\x87R",
    "storage type": named("torch", "FloatStorage"),
    "bytes": named("_codecs", "encode") + b"U\x01aU\x06latin1\x86R",
    "number": b"K\x05",
    "text": b"U\x03abc",
    "tuple": b")",
    "frozenset": b"(\x91",
}
DTYPE_STATE = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_opcode_changes_what_a_global_made(made, mutation):
    """The plain state of a type is the one exception, once."""
    content = MADE[made] + MUTATIONS[mutation]
    if (made, mutation) == ("dtype", "BUILD tuple"):
        value = read(content)
        assert value.plain == np.float64
        content += MUTATIONS[mutation]
    with pytest.raises(UserError):
        read(content)


def test_a_type_of_objects_cannot_lose_its_flags_and_take_bytes():
    """numpy.dtype('O'), its flags cleared by BUILD, then a scalar of the file's bytes.

    With numpy's own type these bytes become a pointer to an object: code of the file.
    """
    bare = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = named("numpy", "dtype") + b"U\x01OK\x00K\x01\x87R" + bare
    pointer = b"C\x08" + b"\x00" * 8  # harmless; refused before it is looked at
    scalar = named("numpy.core.multiarray", "scalar") + dtype + pointer + b"\x86R"
    with pytest.raises(RefusedPickleError, match=r"numbers of type .*Type"):
        read(scalar)
    state = b"(K\x01K\x01\x85" + dtype + b"\x89" + pointer + b"tb"
    with pytest.raises(UserError, match="an array of shape"):
        read(MADE["array"] + state)
    frombuffer = named("numpy.core.numeric", "_frombuffer")
    with pytest.raises(RefusedPickleError):
        read(frombuffer + b"(" + pointer + dtype + b"K\x01\x85U\x01CtR")


@pytest.mark.parametrize("spec", ["V8", "f8,O", "M8[s]", "O,O", "G", "(2,)f8", "c16"])
def test_types_that_are_not_plain_are_refused(spec):
    text = b"U" + bytes([len(spec)]) + spec.encode()
    with pytest.raises(RefusedPickleError, match="plain numbers"):
        read(named("numpy", "dtype") + text + b"K\x00K\x01\x87R" + DTYPE_STATE + b"b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"K\x01K\x01\x85", "before it has a content"),  # the array itself, again
        (b"", "without a content"),
    ],
)
def test_arrays_are_not_used_before_they_have_a_content(content, message):
    again = b"2" if content else b""
    with pytest.raises(UserError, match=message):
        read(MADE["array"] + again)


def test_the_machine_agrees_with_pythons_on_plain_values():
    """Random values, all protocols; memo, marks and frames included."""
    random = np.random.default_rng(0)

    def value(depth):
        kind = random.integers(12 if depth else 7)
        many = [value(depth - 1) for _ in range(random.integers(5))] if depth else []
        return [
            lambda: int(random.integers(-(2**62), 2**62)) ** 3,
            lambda: int(random.integers(300)),
            lambda: float(random.normal()),
            lambda: "é\n'\"\\" + chr(random.integers(33, 5000)) * int(kind),
            lambda: bytes(random.bytes(int(random.integers(300)))),
            lambda: None,
            lambda: bool(random.integers(2)),
            lambda: many,
            lambda: tuple(many),
            lambda: dict(enumerate(many)),
            lambda: {"shared": many, "again": many},
            lambda: {str(v) for v in range(len(many))},
        ][kind]()

    for seed in range(60):
        made = value(4)
        for protocol in range(6):
            content = pickle.dumps(made, protocol)
            assert (seed, safe_pickle.loads(content, ALLOWED, "x")) == (seed, made)


# --- memory and time ----------------------------------------------------------------


def bomb(levels: int, container: bytes) -> bytes:
    """Return nested containers, each of which holds the one below it twice."""
    step = container.join([b"", b"q\x00h\x00"]) if container == b"\x86" else b""
    return b"U\x01a" + (b"q\x00h\x00" + container) * levels + step


BOMBS = {
    "memo index": b"]r\x00\x00\x00\x10",
    "bytearray of a number": named("builtins", "bytearray") + b"J\x00\x5e\xd0\x7e\x85R",
    "length of text": b"X\xff\xff\xff\xff",
    "length of bytes": b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00",
    "nested key": b"}" + bomb(40, b"\x86") + b"K\x01s",
    "nested persistent id": bomb(40, b"\x86") + b"Q",
    "nested value": bomb(40, b"\x86"),
    "deep value": b"]" * 5000 + b"a" * 4999,
    "list in itself": b"]q\x00h\x00a",
    "copies": b"B\x00\x00\x10\x00" + bytes(2**20) + b"q\x01"
    b"(" + (named("builtins", "bytearray") + b"h\x01\x85R") * 200 + b"l",
    "digits": b"L" + b"9" * 100_000 + b"L\n",
    "long number": b"\x8b\x00\x00\x00\x01" + b"\x01" * 2**24,
    "shape": MADE["array"]
    + b"(K\x01(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft"
    + MADE["dtype"]
    + DTYPE_STATE
    + b"b\x89C\x08"
    + bytes(8)
    + b"tb",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_take_little_memory_and_time(name):
    import tracemalloc

    tracemalloc.start()
    start = time.perf_counter()
    try:
        value = read(BOMBS[name])
    except UserError as error:
        value = []
        assert len(str(error)) < 1000
    assert value == [] and time.perf_counter() - start < 5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e8


def test_lengths_of_programs_have_limits_that_can_be_raised(monkeypatch):
    content = pickle.dumps([[] for _ in range(50)], 2)
    monkeypatch.setenv(limits.PICKLE_CONTAINERS.variable, "50")
    with pytest.raises(UserError, match=r"more than 50 containers.*_CONTAINERS"):
        safe_pickle.loads(content, ALLOWED, "x")
    monkeypatch.setenv(limits.PICKLE_CONTAINERS.variable, "51")
    assert len(safe_pickle.loads(content, ALLOWED, "x")) == 50
    monkeypatch.setenv(limits.PICKLE_STEPS.variable, "100")
    with pytest.raises(UserError, match=r"more than 100 steps.*HANDJAX_MAX_PICKLE_STE"):
        safe_pickle.loads(content, ALLOWED, "x")
    monkeypatch.setenv(limits.PICKLE_STEPS.variable, "many")
    with pytest.raises(UserError, match="'many' is not a whole number"):
        safe_pickle.loads(content, ALLOWED, "x")


def test_memory_that_there_is_not_is_one_line():
    def call():
        raise MemoryError

    with pytest.raises(UserError, match="more memory than there is"):
        read(named("a", "b") + b")R", {("a", "b"): Function("b", call)})


def test_values_are_shown_in_a_few_words():
    nested = [[[]] * 9] * 9
    for value in (10**5000, nested, "x" * 999, b"y" * 999, {1: 2}, object(), ALLOWED):
        assert len(shown(value)) < 100


def test_messages_that_quote_files_stay_short():
    error = UserError("a.pkl: " + "x" * 10**6 + " Copy it again.")
    assert len(str(error)) <= 1500 and str(error).startswith("a.pkl: xxx")
    assert str(error).endswith("Copy it again.")
