"""`python tests/fake_train.py ...` is `handjax.train` with the fake family and data."""

import os
import sys
import time
import types

import fake_family
import jax

from handjax import models, train
from handjax.family import hand_constants
from handjax.training import loop

models.load = lambda name: fake_family
hand_constants.hand_constants = lambda file: types.SimpleNamespace(faces=file.faces)


class Data(fake_family.Data):
    def train_split(self, stage):
        yield fake_family.batch(8, (1, 2))


sys.modules["handjax.data.run_data"] = types.SimpleNamespace(  # type: ignore[assignment]
    open_data=lambda config, hand_file, create: Data(),
    example_batch=lambda config, hand_file: fake_family.batch(2, (0,)),
    for_stage=lambda batch, stage: batch,
)

compiled, late = loop._compiled, float(os.environ.get("FAKE_LATE_S", "0"))


def compiled_late(*arguments):
    if jax.process_index() > 0:
        time.sleep(late)
    return compiled(*arguments)


loop._compiled = compiled_late

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(train.main())
