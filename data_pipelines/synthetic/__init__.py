"""Render annotated pictures of the built-in hand.

`generate.ensure(directory, num, num_test)` makes them on first use;
`poses.PosePriorSource` gives poses and shapes without pictures.
"""


def ensure(*args, **settings):
    """Call `generate.ensure`, which is imported only when it is needed."""
    from data_pipelines.synthetic import generate

    return generate.ensure(*args, **settings)
