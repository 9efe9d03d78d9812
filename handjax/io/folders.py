"""What is in a folder, without what systems hide there."""

from pathlib import Path


def visible(folder: str | Path, pattern: str = "*") -> list[Path]:
    """List a folder by name, without hidden entries.

    macOS writes `._x.jpg` beside `x.jpg` on foreign disks and into archives, and
    `.DS_Store` everywhere; `glob` takes them for what their suffix says.

    Args:
        folder: Folder to look in; an absent one has no entries.
        pattern: Pattern of names, as `Path.glob` has them; below it may name folders.
    """
    return sorted(p for p in Path(folder).glob(pattern) if not p.name.startswith("."))
