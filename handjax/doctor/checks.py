"""Checks of `handjax doctor`: each looks at one thing and says what it found.

A check never raises: what is broken is what it is here to report.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

OK, NOTE, PROBLEM = "ok", "note", "problem"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CARDS: Mapping[str, tuple[str, str, str]] = {
    "/dev/nvidiactl": ("gpu", "an NVIDIA card", "cuda12"),
    "/dev/accel0": ("tpu", "a TPU", "tpu"),
    "/dev/vfio/0": ("tpu", "a TPU", "tpu"),
}
"""Device files of accelerators: JAX's backend, what it is, and the extra that uses
it."""
MIN_MEMORY_GB, MIN_DISK_GB = 4.0, 5.0
"""Below these a note is due: training and its data want more."""


_REINSTALL = "the installation is damaged; install handjax again"


class Row(NamedTuple):
    """The outcome of one check."""

    name: str
    state: str
    """`OK`, `NOTE` (works, could be better) or `PROBLEM`."""
    found: str
    advice: str = ""
    """What to do: a command where there is one."""


def run() -> Iterator[Row]:
    """Yield the rows of all checks, in the order of a first look."""
    yield _python()
    yield _packages()
    yield _devices()
    yield _memory()
    yield _hand_model()
    yield from _models()
    yield _cache()
    yield from _extras()


def _python() -> Row:
    version = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11):
        return Row("Python", PROBLEM, version, "install Python 3.11 or newer")
    return Row("Python", OK, f"{version}, {platform.platform()}")


def _packages() -> Row:
    versions = {name: _version(name) for name in ("handjax", *PACKAGES)}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        advice = f"pip install {' '.join(missing)}"
        return Row("packages", PROBLEM, f"missing: {', '.join(missing)}", advice)
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Row("packages", OK, found)


def _devices() -> Row:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver that does not fit
        line = str(error).partition("\n")[0]
        return Row("devices", PROBLEM, line, "JAX_PLATFORMS=cpu handjax doctor")
    kinds = {device.device_kind for device in devices}
    found = f"{len(devices)} x {', '.join(sorted(kinds))}"
    if devices[0].platform == "cpu":
        found += f", {os.cpu_count()} cores"
    for path, (platform_name, what, extra) in CARDS.items():
        if Path(path).exists() and devices[0].platform != platform_name:
            return Row(
                "devices",
                PROBLEM,
                f"{found}; this machine has {what} that JAX does not use",
                f"pip install 'jax[{extra}]'",
            )
    return Row("devices", OK, found)


def _memory() -> Row:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Row("memory", OK, "not known on this system")
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page / 1e9
    found = f"{total:.1f} GB"
    if total < MIN_MEMORY_GB:
        advice = "predict one photo at a time; train on another machine"
        return Row("memory", NOTE, found, advice)
    return Row("memory", OK, found)


def _hand_model() -> Row:
    from handjax.errors import HandjaxError
    from handjax.mano import model_files

    try:
        file = model_files.load("open")
    except (HandjaxError, OSError) as error:
        return Row("hand model", PROBLEM, str(error), _REINSTALL)
    count = len(file.v_template)
    return Row(
        "hand model",
        OK,
        f"built in, {count} vertices, {file.sha256[:12]}; "
        "MANO: --config.hand.source=MANO_RIGHT.pkl",
    )


def _models() -> Iterator[Row]:
    from handjax.errors import HandjaxError
    from handjax.inference import released

    for name in released.names():
        path = released.path_of(name)
        try:
            found = released.about(path)
        except (HandjaxError, OSError) as error:
            advice = _REINSTALL
            yield Row(f"model {name}", PROBLEM, str(error), advice)
            continue
        size = Path(path).stat().st_size / 1e6
        yield Row(f"model {name}", OK, f"{size:.1f} MB, {found['licence']}")


def _cache() -> Row:
    from handjax.data.directories import cache_root

    root = cache_root()
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    used = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) / 1e9
    found = f"{root}: {used:.1f} GB used, {free:.0f} GB free"
    if not os.access(existing, os.W_OK):
        advice = "export HANDJAX_DATA=/a/folder/that/you/may/write"
        return Row("cache", PROBLEM, f"{existing} is not writable", advice)
    if free < MIN_DISK_GB:
        advice = f"rm -r {root}  # rendered data and compiled programs are made again"
        return Row("cache", NOTE, found, advice)
    return Row("cache", OK, found)


def _extras() -> Iterator[Row]:
    """Extras of pyproject.toml that people use; devices have a row of their own."""
    try:
        required = importlib.metadata.requires("handjax") or []
    except importlib.metadata.PackageNotFoundError:
        return
    extras: dict[str, list[str]] = {}
    for line in required:
        requirement, _, marker = line.partition(";")
        _, equals, extra = marker.partition("extra == ")
        if equals:
            name = requirement.split("[")[0].split(">")[0].split("=")[0].strip()
            extras.setdefault(extra.strip(" \"'"), []).append(name)
    for extra in sorted(set(extras) - {"cuda12", "cuda13", "tpu", "dev"}):
        missing = [name for name in extras[extra] if _version(name) is None]
        if missing:
            advice = f"pip install {' '.join(missing)}"
            yield Row(f"extra {extra}", NOTE, "not installed", advice)
        else:
            yield Row(f"extra {extra}", OK, "installed")


def _version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
