"""Strictness for every test: eight CPU devices, no silent broadcasting."""

import gc
import mmap
import os
from pathlib import Path

import jax
import jaxlib


def _knows(flag: str) -> bool:
    """Whether this jaxlib has a flag of XLA's: it aborts over one that it has not."""
    for library in Path(jaxlib.__path__[0]).glob("libjax_common.*"):
        with library.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return whole.find(flag.encode()) >= 0
    return False


# Tests spend their time on compiling, and half of that on making code fast that runs
# once. Processes that tests start inherit it.
_FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
if _knows("xla_cpu_use_fusion_emitters"):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()

# Tracing makes millions of small objects; looking through them is 5 % of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
# Commands that run in tests must not leave files in the user's cache.
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
