"""Device mesh, shardings of arrays, and batches that span hosts.

The mesh has two axes. `data` splits the batch; `fsdp` splits the batch too and also the
large parameters with their optimiser state, for models that one device cannot hold.
"""

from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from handjax.errors import UserError

MIN_SPLIT_SIZE = 2**16
"""Least elements of a parameter for which splitting is worth the traffic."""


def make_mesh(config: ml_collections.ConfigDict, devices: Any = None) -> Mesh:
    """Return the mesh of `config.mesh` over all devices of all hosts.

    Raises:
        UserError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = config.data, config.fsdp
    if data == -1:
        data = len(devices) // fsdp
    if data * fsdp != len(devices) or data < 1:
        raise UserError(
            f"config.mesh.data={config.data} times config.mesh.fsdp={fsdp} does not "
            f"cover the {len(devices)} devices here; set mesh.data=-1 and an fsdp that "
            f"divides {len(devices)}."
        )
    # Auto: the compiler propagates shardings, as this code expects; make_mesh's default
    # (Explicit) would ask for a sharding at every reshape.
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding with the leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each array (or its shape) of a train state.

    The longest axis that the fsdp axis divides is split; small arrays are replicated.
    """
    size = mesh.shape["fsdp"]

    def of(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        if size == 1 or np.prod(shape) < MIN_SPLIT_SIZE:
            return replicated(mesh)
        axes = [i for i, n in enumerate(shape) if n % size == 0]
        if not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: shape[i])
        spec = ["fsdp" if i == axis else None for i in range(len(shape))]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of, tree)


def per_process(stage: ml_collections.ConfigDict, mesh: Mesh, key: str) -> int:
    """Return how many examples of a global batch this host loads.

    Args:
        stage: `config.stages.<name>`; its `batch_size` is over all hosts.
        mesh: The devices that share the batch.
        key: Key of `stage` in the config, for the message.

    Raises:
        UserError: The devices cannot share the batch equally, in as many parts as
            the stage accumulates.
    """
    parts = mesh.size * stage.accumulate
    if stage.batch_size % parts:
        raise UserError(
            f"config.{key}.batch_size={stage.batch_size} cannot be shared equally by "
            f"{mesh.size} devices ({jax.process_count()} processes) with accumulate="
            f"{stage.accumulate}; make it a multiple of {parts}."
        )
    return stage.batch_size // jax.process_count()


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """Return global arrays from the part of the batch that this process loaded."""
    where = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), batch
    )


def shared_batch(mesh: Mesh, batch: Any) -> Any:
    """Return global arrays from a batch that every process has loaded whole.

    Copies of the last example pad it to a multiple of the devices.
    """
    where = batch_sharding(mesh)

    def shared(x: Any) -> jax.Array:
        x = np.asarray(x)
        more = -len(x) % mesh.size
        x = np.concatenate([x, np.repeat(x[-1:], more, axis=0)])
        return jax.make_array_from_callback(x.shape, where, lambda rows: x[rows])

    return jax.tree.map(shared, batch)
