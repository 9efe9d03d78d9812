"""A run of the fake family whose data holds hands that are not finite."""

import fake_family
import jax
import numpy as np

from handjax.distributed.sharding import make_mesh
from handjax.training.run import Hooks, Run, Stop

BAD = (3, 5)
"""Updates whose batch has a hand that is nan."""


class Poisoned(fake_family.Data):
    def __init__(self, bad=BAD, broken="vertices", value=np.nan):
        super().__init__()
        self.bad, self.broken, self.value = bad, broken, value

    def train(self, stage, batch_size, start_step):
        batches = super().train(stage, batch_size, start_step)
        for step, batch in enumerate(batches, start_step + 1):
            if step in self.bad:
                array = getattr(batch, self.broken).copy()
                array[1, 2] = self.value
                batch = batch._replace(**{self.broken: array})
            yield batch


def poisoned_run(workdir, data=None, stop=None, **changes):
    config = fake_family.get_config()
    config.update_from_flattened_dict(changes)
    workdir.mkdir(exist_ok=True)
    return Run(
        config=config,
        workdir=workdir,
        family=fake_family,
        model=fake_family.Model(**config.model.to_dict()),
        hand=fake_family.HAND,
        hand_info={"name": "open", "sha256": "0"},
        example=fake_family.batch(2, (0,)),
        data=data or Poisoned(),
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
        hooks=Hooks(),
        stop=Stop(stop),
    )
