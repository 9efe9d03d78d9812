"""Damage files: blindly, and inside of what archives, JSON and pictures hold."""

import gzip
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
VALUES = ([], {}, 5, -1, 0, 1e308, -1e30, None, True, "", "x", 10**400, [[]], {"a": 1})
VALUES += (float("nan"), float("inf"), [1e30] * 3, "../../x", "\0", 2**31)


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return a damaged copy of a file's content."""
    inside = {b"PK\x03\x04": _archive, b"\x1f\x8b\x08\x00": _packed}
    inside |= {b"\x89PNG": _picture}
    for head, change in inside.items():
        if data.startswith(head) and source.random() < 0.6:
            return change(data, source)
    if data[:1] in (b"{", b"[") and source.random() < 0.7:
        return _json(data, source)
    for _ in range(source.choice((1, 1, 1, 2, 4, 16))):
        data = source.choice(_BLIND)(data, source)
    return data


def _place(data: bytes, source: random.Random) -> int:
    # Headers are at the beginning: half of the changes are made there.
    most = len(data) if source.random() < 0.5 else min(len(data), 256)
    return source.randrange(most + 1)


def _flip(data, source):
    if not data:
        return b"\0"
    at = min(_place(data, source), len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :]


def _number(data, source):
    at, size = _place(data, source), source.choice((1, 2, 4, 8))
    order = source.choice(("little", "big"))
    value = source.choice(NUMBERS) % 256**size
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _cut(data, source):
    return data[: _place(data, source)]


def _remove(data, source):
    at = _place(data, source)
    return data[:at] + data[at + source.choice((1, 2, 4, 16, 300)) :]


def _repeat(data, source):
    at, size = _place(data, source), source.choice((1, 4, 16, 300))
    return data[:at] + data[at : at + size] * source.choice((2, 3, 50)) + data[at:]


def _insert(data, source):
    at = _place(data, source)
    return data[:at] + source.randbytes(source.choice((1, 2, 8))) + data[at:]


def _opcode(data, source):
    at = _place(data, source)
    codes = b"".join(source.choices(OPCODES, k=source.choice((1, 1, 3))))
    return data[:at] + codes + data[at + source.choice((0, 1)) :]


_BLIND = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _insert, _opcode)


def _archive(data: bytes, source: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = source.choice(sorted(parts))
    if source.random() < 0.05:
        parts[name] = parts[name][:64] + bytes(source.choice((10**6, 10**8)))
    elif source.random() < 0.1:
        del parts[name]
    else:
        parts[name] = mutated(parts[name], source)
    made = io.BytesIO()
    method = source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(made, "w", method) as archive:
        for key, part in parts.items():
            archive.writestr(key, part)
    data = made.getvalue()
    return _flip(data, source) if source.random() < 0.2 else data


def _packed(data: bytes, source: random.Random) -> bytes:
    return gzip.compress(mutated(gzip.decompress(data), source), 1)


def _picture(data: bytes, source: random.Random) -> bytes:
    """Change a chunk of a PNG and sign it again."""
    at, chunks = 8, []
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    number = source.randrange(len(chunks))
    kind, content = chunks[number]
    if kind == b"IHDR":
        sizes = [source.choice((0, 1, 300, 20_000, 2**31 - 1)) for _ in range(2)]
        content = struct.pack(">II", *sizes) + content[8:]
    else:
        content = mutated(content, source)
    chunks[number] = kind, content
    made = data[:8]
    for kind, content in chunks:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        made += struct.pack(">I", len(content)) + kind + content + crc
    return made


def _json(data: bytes, source: random.Random) -> bytes:
    """Replace, remove or repeat something anywhere in the values of JSON (lines)."""
    try:
        value = json.loads(data)
    except ValueError:
        lines = data.splitlines()
        at = source.randrange(len(lines))
        lines[at] = source.choice(_BLIND)(lines[at], source)
        return b"\n".join(lines)
    root = box = [value]
    key = 0
    while True:
        inner = box[key]
        if not isinstance(inner, (dict, list)) or not inner or source.random() < 0.25:
            break
        box = inner
        key = source.choice(list(box) if isinstance(box, dict) else range(len(box)))
    what = source.randrange(4)
    if what == 0:
        del box[key]
    elif what == 1 and isinstance(box, list):
        box.extend([box[key]] * source.choice((1, 50)))
    else:
        box[key] = source.choice(VALUES)
    return json.dumps(root[0] if root else None).encode()
