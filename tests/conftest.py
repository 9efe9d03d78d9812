"""Strictness for every test: eight CPU devices, no silent broadcasting."""

import gc
import os

import jax

# Tests spend their time on compiling, and half of that on making code fast that runs
# once. Processes that tests start inherit it.
_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_backend_optimization_level=0".strip()

# Tracing makes millions of small objects; looking through them is 5 % of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
