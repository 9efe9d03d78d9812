"""Names of data sets.

Nothing is imported here, since config files have to load fast.
"""

DATASETS = (
    "synthetic",
    "freihand",
    "dexycb",
    "ho3d_v2",
    "ho3d_v3",
    "h2o3d",
    "interhand26m",
    "rhd",
    "mtc",
    "coco_wholebody",
    "halpe",
    "mpii_nzsl",
    "hint",
    "asl",
    "own",
    "synthetic_body",
)
"""Sources of records; stored by position, so new names go to the end."""

PREPARED = tuple(
    name for name in DATASETS if name not in ("synthetic", "own", "synthetic_body")
)
"""Data sets of `data_pipelines.prepare`: the keys of `config.data.mixture.shares`."""
