"""Look into a codebook of hand tokens: use, effect of codes, swaps, neighbours, maps.

Works for any family whose tokenizer turns meshes or poses into indices, and codes into
meshes: `Codebook` holds the two functions, `TokenizedHands` are both meshes and poses.
Distances on meshes are millimetres. The notebook `explore_codebook.ipynb` shows what is
here and holds no logic of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from handjax.family.capabilities import Tokenizes
from handjax.visualization import render

Decode = Callable[[np.ndarray], np.ndarray]


class TokenizedHands(NamedTuple):
    """Hands as meshes and as poses; a tokenizer takes the one that it reads."""

    vertices: Float[np.ndarray, "hand 778 3"]
    """Metres, relative to the root joint."""
    mano_pose: Float[np.ndarray, "hand 16 3"]
    """Absolute axis-angle in radians, wrist first."""


class Codebook(NamedTuple):
    """A trained tokenizer, seen from its codes."""

    embedding: Float[np.ndarray, "code dim"]
    encode: Callable[[TokenizedHands], np.ndarray]
    """Hands -> indices (hand token)."""
    decode: Decode
    """Codes (hand token dim) -> vertices (hand 778 3), metres."""
    faces: Int[np.ndarray, "1538 3"]


def of_model(model: Tokenizes, variables: Any) -> Codebook:
    """Return the codebook of a token family's model.

    Args:
        model: Of a family that `Tokenizes`.
        variables: Of that model.
    """
    import jax

    from handjax.training import codebook_curves

    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode"))
    decode = jax.jit(lambda v, x: model.apply(v, x, method="decode_codes").vertices)
    embedding = codebook_curves.leaf(variables, "embedding")
    assert embedding is not None  # a model that tokenizes has one
    return Codebook(
        embedding=embedding.astype(np.float32),
        encode=lambda hands: _in_chunks(
            lambda part: encode(variables, part), getattr(hands, model.tokenizes)
        ),
        decode=lambda x: _in_chunks(lambda part: decode(variables, part), x),
        faces=np.asarray(variables["constants"]["faces"]),
    )


def _in_chunks(function: Callable, x: Any, size: int = 32) -> np.ndarray:
    """Apply a compiled function to `size` hands at a time, always the same shape.

    Compiling takes seconds, and exploring asks for every number of hands.
    """
    x = np.asarray(x, np.float32)
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    parts = [function(padded[i : i + size]) for i in range(0, len(padded), size)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(x)]


class Usage(NamedTuple):
    """How the codes are used by a set of hands."""

    counts: Int[np.ndarray, "code"]
    used: float
    """Share of codes that occur at all."""
    perplexity: float
    """exp(entropy): how many equally used codes would be as varied."""


def usage(indices: Int[np.ndarray, "hand token"], num_codes: int) -> Usage:
    """Count codes over hands and tokens."""
    counts = np.bincount(indices.ravel(), minlength=num_codes)
    share = counts / max(counts.sum(), 1)
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return Usage(counts, float((counts > 0).mean()), float(np.exp(entropy)))


def decode_indices(
    codebook: Codebook, indices: Int[np.ndarray, "hand token"]
) -> Float[np.ndarray, "hand 778 3"]:
    """Decode token indices into meshes."""
    return codebook.decode(codebook.embedding[indices])


# --- a model and hands to look at ----------------------------------------------------


def open_model(workdir: str = "", *, steps: int = 200) -> tuple[Any, Any, Any]:
    """Load a run's model, variables and config; "" trains a small tokenizer first.

    Args:
        workdir: Of a `handjax.train` run.
        steps: Steps of the smoke-size tokenizer that is trained without a workdir.
    """
    from handjax.checkpoints.workdir import load_for_inference

    if not workdir:
        workdir = _trained(steps)
    config, model, variables, stage, step = load_for_inference(workdir)
    print(f"{config.family}, stage {stage}, step {step} of {workdir}")
    return model, variables, config


def _trained(steps: int) -> str:
    import tempfile

    from handjax.config.files import load_config
    from handjax.training import launch

    config = load_config("tokenhand:smoke")
    workdir = tempfile.mkdtemp(prefix="handjax_codebook_")
    first = next(iter(config.stages))
    with config.unlocked():
        config.stages[first].steps = max(steps, config.stages[first].steps)
    launch.train(config, workdir, stop_after=steps)
    return workdir


def sample_hands(config: Any, num: int, *, seed: int = 10_000) -> TokenizedHands:
    """Sample random hands that training has not seen.

    Where tokens say nothing of the shape, because poses are what is tokenized, all
    hands are of mean shape, as decoded ones are.
    """
    import jax

    from handjax import models
    from handjax.data.poses import pose_batches
    from handjax.family import hand_constants
    from handjax.geometry import skeleton
    from handjax.mano import hand_model, model_files

    hand_file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    root = skeleton.ROOTS[config.data.root]
    batches = pose_batches(
        hand_file,
        batch_size=num,
        seed=seed,
        start_step=0,
        root=root,
        crop_size=config.data.crop_size,
    )
    batch = next(batches)
    vertices = batch.vertices
    model: Any = models.load(config.family).Model
    if isinstance(model, Tokenizes) and model.tokenizes == "mano_pose":
        hand = hand_model.HandModel.from_file(hand_file)
        vertices, _ = jax.jit(hand_model.skin)(hand, batch.mano_pose, 0 * batch.betas)
        joints = hand_constants.joints_from_vertices(hand.joint_regressor, vertices)
        vertices = np.asarray(vertices - joints[:, root][:, None])
    return TokenizedHands(vertices, batch.mano_pose)


# --- what codes do ------------------------------------------------------------------


def displacement_mm(
    a: Float[np.ndarray, "*hand 778 3"], b: Float[np.ndarray, "*hand 778 3"]
) -> Float[np.ndarray, "*hand 778"]:
    """Return how far each vertex moves from mesh a to mesh b, millimetres."""
    return 1e3 * np.linalg.norm(a - b, axis=-1)


def token_reach_mm(
    codebook: Codebook,
    indices: Int[np.ndarray, "hand token"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, "token 778"]:
    """Compute each vertex's mean movement when a token takes another hand's code.

    Shows which part of the hand each token position looks after.
    """
    rng = np.random.default_rng(seed)
    before = decode_indices(codebook, indices)
    reach = []
    for token in range(indices.shape[1]):
        changed = indices.copy()
        changed[:, token] = rng.permutation(indices[:, token])
        moved = displacement_mm(before, decode_indices(codebook, changed))
        differs = changed[:, token] != indices[:, token]
        reach.append(
            moved[differs].mean(axis=0) if differs.any() else moved.mean(axis=0)
        )
    return np.stack(reach)


class CodeEffect(NamedTuple):
    """What one code does to one hand."""

    token: int
    """Position where the code was put: the one that uses it most."""
    before: Float[np.ndarray, "778 3"]
    after: Float[np.ndarray, "778 3"]
    moved_mm: Float[np.ndarray, "778"]


def code_effect(
    codebook: Codebook,
    indices: Int[np.ndarray, "hand token"],
    code: int,
    *,
    hand: int = 0,
) -> CodeEffect:
    """Put a code into a hand, at the position where it occurs most among `indices`."""
    token = int((indices == code).sum(axis=0).argmax())
    after = indices[hand : hand + 1].copy()
    after[0, token] = code
    meshes = decode_indices(codebook, np.concatenate([indices[hand : hand + 1], after]))
    return CodeEffect(token, *meshes, displacement_mm(*meshes))


def swap(
    codebook: Codebook,
    indices: Int[np.ndarray, "hand token"],
    *,
    source: int,
    target: int,
    tokens: Sequence[int],
) -> Float[np.ndarray, "778 3"]:
    """Decode the target hand with some of the source hand's tokens."""
    mixed = indices[target : target + 1].copy()
    mixed[0, list(tokens)] = indices[source, list(tokens)]
    return decode_indices(codebook, mixed)[0]


def interpolate_hands(
    codebook: Codebook,
    first: Int[np.ndarray, "token"],
    second: Int[np.ndarray, "token"],
    *,
    steps: int = 5,
) -> Float[np.ndarray, "step 778 3"]:
    """Decode meshes along the straight line between the codes of two hands."""
    t = np.linspace(0, 1, steps)[:, None, None]
    a, b = codebook.embedding[first][None], codebook.embedding[second][None]
    return codebook.decode((a + t * (b - a)).astype(np.float32))


# --- neighbours ---------------------------------------------------------------------


class Neighbour(NamedTuple):
    """A pair of codes and how far apart they are."""

    code: int
    other: int
    distance: float


def nearest_pairs(
    embedding: Float[np.ndarray, "code dim"], num: int = 10
) -> list[Neighbour]:
    """Return the closest pairs of codes, nearest first, as possible duplicates."""
    distances = _distances(embedding)
    rows, columns = np.triu_indices(len(embedding), k=1)
    order = np.argsort(distances[rows, columns], kind="stable")[:num]
    return [
        Neighbour(int(a), int(b), float(distances[a, b]))
        for a, b in zip(rows[order], columns[order], strict=True)
    ]


def map_2d(embedding: Float[np.ndarray, "code dim"]) -> Float[np.ndarray, "code 2"]:
    """Project the codes onto their first two principal components."""
    centred = embedding - embedding.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    flat = u[:, :2] * s[:2]
    # Signs of singular vectors are arbitrary; fix them so that maps can be compared.
    extreme = np.sign(flat[np.abs(flat).argmax(axis=0), [0, 1]])
    return flat * np.where(extreme == 0, 1.0, extreme)


def _distances(embedding: np.ndarray) -> np.ndarray:
    # Differences, not |a|^2 + |b|^2 - 2ab: near-duplicates would drown in rounding.
    rows = [np.linalg.norm(embedding - row, axis=1) for row in embedding]
    return np.stack(rows).astype(np.float64)


# --- pictures -----------------------------------------------------------------------


def heat_colors(
    values: Float[np.ndarray, "778"], top: float | None = None
) -> Float[np.ndarray, "778 3"]:
    """Colour each vertex from skin (0) over orange to dark red (`top`)."""
    top = float(values.max()) if top is None else top
    t = np.clip(values / max(top, 1e-9), 0, 1)[:, None]
    stops = np.array([[0.92, 0.88, 0.84], [1.0, 0.62, 0.2], [0.6, 0.05, 0.1]])
    low = stops[0] + (stops[1] - stops[0]) * np.minimum(2 * t, 1)
    return low + (stops[2] - stops[1]) * np.maximum(2 * t - 1, 0)


def mesh_row(
    meshes: Sequence[Float[np.ndarray, "778 3"]],
    faces: Int[np.ndarray, "1538 3"],
    *,
    heat_mm: Sequence[Float[np.ndarray, "778"]] | None = None,
    size: int = 160,
    columns: int | None = None,
    yaw_deg: float = 0.0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw meshes side by side at one scale, coloured by how far vertices moved."""
    radius = 1.08 * max(
        float(np.linalg.norm(m - (m.max(0) + m.min(0)) / 2, axis=1).max())
        for m in meshes
    )
    top = max((float(h.max()) for h in heat_mm), default=0.0) if heat_mm else 0.0
    pictures = []
    for i, mesh in enumerate(meshes):
        color = heat_colors(heat_mm[i], top) if heat_mm else render.PREDICTION_COLOR
        pictures.append(
            render.turned_view(
                mesh, faces, size=size, color=color, radius=radius, yaw_deg=yaw_deg
            )
        )
    return render.side_by_side(pictures, columns=columns)


def usage_figure(use: Usage) -> Any:
    """Plot the counts of the codes, most used first (matplotlib figure)."""
    figure, axes = _figure(8.0, 2.6)
    axes.bar(np.arange(len(use.counts)), np.sort(use.counts)[::-1], width=1.0)
    axes.set_xlabel("codes, most used first")
    axes.set_ylabel("times used")
    axes.set_title(
        f"{use.used:.0%} of {len(use.counts)} codes used, "
        f"perplexity {use.perplexity:.0f}"
    )
    return figure


def map_figure(
    embedding: Float[np.ndarray, "code dim"],
    counts: Int[np.ndarray, "code"],
    pairs: Sequence[Neighbour] = (),
) -> Any:
    """Plot codes on a plane, sized by use, nearest pairs joined (matplotlib)."""
    figure, axes = _figure(6.0, 5.0)
    flat = map_2d(embedding)
    for pair in pairs:
        ends = flat[[pair.code, pair.other]]
        axes.plot(ends[:, 0], ends[:, 1], color="crimson", linewidth=1.5, zorder=1)
    sizes = 8 + 120 * counts / max(counts.max(), 1)
    used = counts > 0
    axes.scatter(*flat[used].T, s=sizes[used], alpha=0.6, zorder=2, label="used")
    axes.scatter(*flat[~used].T, s=12, color="gray", marker="x", label="never used")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    axes.legend(loc="best")
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Figure without pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
