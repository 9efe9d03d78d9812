"""Writes a miniature of a data set: `python -m miniatures NAME DIR`, run in tests/."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    name, directory = sys.argv[1:]
    importlib.import_module(f"miniatures.{name}").make(Path(directory))
