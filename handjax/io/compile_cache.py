"""Compiled programs on disk, so that the same command starts in seconds the next time.

They lie in `~/.cache/handjax/xla`, or where JAX_COMPILATION_CACHE_DIR says. JAX keys
them by program, versions and processor: a stale one is never used.
"""

from pathlib import Path

import jax

DIRECTORY = Path.home() / ".cache" / "handjax" / "xla"
_MIN_SECONDS = 0.3
"""Programs that compile faster are not worth a file."""


def use(where: str = "auto") -> bool:
    """Keep compiled programs in a directory.

    Args:
        where: The directory; "auto": `DIRECTORY`, unless JAX has been told another; "":
            none.

    Returns:
        Whether nothing is there yet, so that the first programs will take a while.
    """
    if not where or not jax.config.values["jax_enable_compilation_cache"]:
        return True
    known = jax.config.values["jax_compilation_cache_dir"]
    chosen = Path(known or DIRECTORY) if where == "auto" else Path(where)
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
    return not any(chosen.glob("*-cache"))
