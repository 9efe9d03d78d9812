"""Read the files that the user downloaded.

Every error names the file, what was expected in it and which archive it comes from.
"""

import fnmatch
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources import json_stream, pictures
from data_pipelines.sources.description import Archive, Builder
from handjax.errors import UserError
from handjax.geometry.skeleton import NUM_VERTICES
from handjax.io import array_files, json_files, safe_pickle
from handjax.io.folders import visible


class SourceError(UserError):
    """A downloaded file is missing or damaged; the message says what to do."""


WRONG_VALUES = (AttributeError, KeyError, TypeError, ValueError, OverflowError)
"""What Python raises for annotations whose values are of other types."""


class DownloadedFiles:
    """Files below the directory that the user gave.

    Args:
        root: That directory.
        builder: Description of the data set.
    """

    def __init__(self, root: Path, builder: Builder):
        self.root, self.builder = Path(root), builder
        self._touched: dict[str, None] = {}

    def touched(self) -> dict[str, list[int] | None]:
        """Return size and time of change of all files read so far; None if absent.

        An index that was made of these files has to be made again when they change.
        """
        return {name: self._state(name) for name in sorted(self._touched)}

    def _touch(self, name: str) -> None:
        self._touched.pop(name, None)  # the last one stands last
        self._touched[name] = None

    def last_read(self) -> list[str]:
        """Return the names of the files that were read last."""
        return list(self._touched)[-3:]

    def _state(self, relative: str) -> list[int] | None:
        try:
            found = (self.root / relative).stat()
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns]

    def is_as_before(self, touched: Mapping[str, list[int] | None]) -> bool:
        """Return whether what `touched` returned some time ago still holds."""
        return all(self._state(name) == state for name, state in touched.items())

    def path(self, relative: str, what: str) -> Path:
        """Return the path of an existing file or directory.

        Args:
            relative: Below the source directory.
            what: Expected content, for the message.

        Raises:
            SourceError: It is missing.
        """
        path = self.root / relative
        self._touch(relative)
        if not path.exists():
            raise self.missing(relative, what)
        return path

    def has(self, relative: str) -> bool:
        """Return whether there is such a file or directory."""
        self._touch(relative)
        return (self.root / relative).exists()

    def first(self, *relatives: str) -> str:
        """Return the first of these files that exists, or else the first."""
        return next((name for name in relatives if self.has(name)), relatives[0])

    def names(self, relative: str, pattern: str, what: str) -> list[str]:
        """Return the sorted names in a directory; at least one.

        Raises:
            SourceError: There is none.
        """
        found = [p.name for p in visible(self.path(relative, what), pattern)]
        if not found:
            raise self.missing(f"{relative}/{pattern}", what)
        return found

    def read(self, relative: str, what: str) -> bytes:
        """Read a file.

        Raises:
            SourceError: It is missing, empty or cannot be read.
        """
        try:
            data = self.path(relative, what).read_bytes()
        except OSError as error:
            raise self.damaged(relative, what, error.strerror) from error
        if not data:
            raise self.damaged(relative, what, "the file is empty")
        return data

    def json(self, relative: str, what: str) -> Any:
        """Read a JSON file.

        Raises:
            SourceError: It is missing, truncated or not JSON.
        """
        data = self.read(relative, what)
        try:
            return json_files.parse(data, "it", advice="")
        except UserError as error:
            reason = str(error).removeprefix("it: ").removesuffix(". ")
            raise self.damaged(relative, what, reason) from None

    def yaml(self, relative: str, what: str) -> dict[str, Any]:
        """Read a YAML file of plain values.

        Raises:
            SourceError: It is missing, or has no names and values.
        """
        import yaml

        try:
            values = yaml.safe_load(self.read(relative, what))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self.damaged(relative, what, f"not complete YAML ({error})") from None
        if not isinstance(values, dict):
            raise self.damaged(relative, what, f"it holds {values!r:.40}")
        return values

    def json_elements(self, relative: str, key: str, what: str) -> Iterator[Any]:
        """Yield the elements of a list in a JSON object, one at a time.

        Raises:
            SourceError: The file is missing or truncated, or has no such list.
        """
        expected = f"a list of {what} under {key!r}"
        path = self.path(relative, expected)
        elements = json_stream.elements(path, key)
        while True:
            try:
                element = next(elements)
            except StopIteration:
                return
            except (ValueError, OverflowError) as error:
                raise self.damaged(relative, expected, error) from None
            yield element

    def json_arrays(
        self, relative: str, shape: tuple[int, ...], what: str
    ) -> np.ndarray:
        """Read a JSON list of arrays of one shape, one at a time.

        Args:
            relative: Below the source directory.
            shape: Shape of each array.
            what: Their meaning, for messages.

        Returns:
            All arrays; meshes, the largest, in float32.

        Raises:
            SourceError: The file is missing or truncated, or an array has another
                shape.
        """
        expected = f"{what}, a list of arrays of shape {shape}"
        dtype = np.float32 if shape[:1] == (NUM_VERTICES,) else np.float64
        values = []
        try:
            elements = json_stream.elements(self.path(relative, expected))
            for number, value in enumerate(elements):
                array = np.array(value, dtype)
                if array.shape != shape:
                    raise UserError(f"element {number} has shape {array.shape}")
                values.append(array)
        except SourceError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise self.damaged(relative, expected, error) from None
        return np.stack(values) if values else np.zeros((0, *shape), dtype)

    def pickle(self, relative: str, what: str) -> Any:
        """Read a pickle of numpy arrays and plain values.

        Raises:
            SourceError: It is missing, or truncated, or asks for anything else.
        """
        path = self.path(relative, what)
        try:
            return safe_pickle.load(path, safe_pickle.plain_globals())
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise self.damaged(relative, what, reason) from None

    def arrays(self, relative: str, what: str) -> dict[str, Any]:
        """Read an npz.

        Raises:
            SourceError: It is missing, or truncated, or asks for anything but arrays.
        """
        path = self.path(relative, what)
        try:
            return array_files.load_npz(path, safe_pickle.plain_globals())
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise self.damaged(relative, what, reason) from None

    def picture(
        self,
        relative: str,
        box: pictures.Box | None = None,
        lens: pictures.Lens | None = None,
    ) -> pictures.Picture:
        """Read a picture, as published or cropped around a box.

        Args:
            relative: Below the source directory.
            box: Centre and size, pixels; None for the whole picture.
            lens: Lens whose distortion is removed; the box is in undistorted pixels.

        Raises:
            SourceError: It is missing or damaged.
        """
        data = self.read(relative, "a picture")
        try:
            return pictures.store(data, box, lens)
        except ValueError as error:
            raise self.damaged(relative, "a picture", str(error)) from None

    def pixels(self, relative: str) -> np.ndarray:
        """Read a picture as numbers, e.g. a mask.

        Raises:
            SourceError: It is missing or damaged.
        """
        data = self.read(relative, "a picture")
        try:
            return pictures.numbers(data)
        except ValueError as error:
            raise self.damaged(relative, "a picture", str(error)) from None

    # --- errors ---------------------------------------------------------------------

    def missing(self, relative: str, what: str) -> SourceError:
        """Return the error for a file that is missing."""
        return SourceError(
            f"{str(self.root / relative)!r} is missing. Expected {what}, from "
            f"{self.origin(relative)}. {self._hint(relative)}"
        )

    def damaged(self, relative: str, what: str, reason: object) -> SourceError:
        """Return the error for a file that is truncated or has the wrong content."""
        return SourceError(
            f"{str(self.root / relative)!r} is damaged or not the right file: "
            f"{reason}. Expected {what}, from {self.origin(relative)}. Unpack it "
            "again, or download it again if that does not help."
        )

    def origin(self, relative: str) -> str:
        """Name the archive that a file comes from, for messages."""
        found = self._archive(relative)
        if found is None:
            return f"{self.builder.title} ({self.builder.url})"
        return f"{found.name} ({found.url or self.builder.url})"

    def _archive(self, relative: str) -> Archive | None:
        for archive in self.builder.archives:
            if any(fnmatch.fnmatch(relative, pattern) for pattern in archive.holds):
                return archive
        return None

    def _hint(self, relative: str) -> str:
        """Return what probably went wrong."""
        if not self.root.is_dir():
            return f"There is no directory {str(self.root)!r}: correct --source."
        archive = self._archive(relative)
        for folder in (self.root, self.root.parent):
            if archive and (folder / archive.name).is_file():
                return _packed(folder / archive.name, self.root)
        first = relative.split("/")[0]
        if not any(mark in first for mark in "*?["):
            for inner in visible(self.root):
                if inner.is_dir() and (inner / first).exists():
                    return f"It is in {str(inner)!r}: give that as --source."
        return (
            "Give the directory with the unpacked archives as --source; `python -m "
            f"data_pipelines.prepare {self.builder.name}` says how to get them."
        )


def _packed(archive: Path, root: Path) -> str:
    """Advise on an archive that is not unpacked, or was never complete."""
    known = archive.suffix == ".zip" or ".tar" in archive.name
    whole = zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)
    if known and not whole:
        return (
            f"{str(archive)!r} is there but not a complete archive: download it again."
        )
    return f"{str(archive)!r} is there: unpack it into {str(root)!r}."
