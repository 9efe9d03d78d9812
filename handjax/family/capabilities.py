"""What a family offers beyond the least, as protocols that `isinstance` answers.

The least is `Family`, a module of `handjax.models` with `PAPER`, `Model` and `stages`.
Whatever else a family can do it offers under a name that stands here, and whoever uses
it asks `isinstance(model, Samples)` first. Flax modules are asked unbound: methods are
called as `model.apply(variables, ..., method="hypotheses")`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import linen as nn

from handjax.family.hand_constants import HandConstants
from handjax.family.hypotheses import Hypotheses
from handjax.family.stage import Stage
from handjax.types import Explanation, HandOutput, Paper, Variables

# --- models -------------------------------------------------------------------------


@runtime_checkable
class Samples(Protocol):
    """A model that draws several hands for one input."""

    def hypotheses(self, image: Any, key: Any, count: int) -> Hypotheses:
        """Draw `count` hands for each image (or text), the most confident first."""
        ...


@runtime_checkable
class SamplesInSteps(Samples, Protocol):
    """A model whose draws take a number of passes that can be chosen."""

    steps: int
    """Passes for each draw; fewer are faster and coarser."""


@runtime_checkable
class Explains(Protocol):
    """A model that tells what it attends to."""

    def explain(self, image: Any) -> Explanation:
        """Return clusters and attention, None where this configuration has none."""
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """A model that turns hands into codes and back."""

    tokenizes: str
    """What `encode` takes: "vertices" or "mano_pose", a field of `Batch`."""

    def encode(self, hands: Any) -> Any:
        """Return the code of each token, (batch, token)."""
        ...

    def decode_codes(self, codes: Any) -> HandOutput:
        """Return the hands of code vectors (batch, token, dim)."""
        ...


@runtime_checkable
class Folds(Protocol):
    """A model whose backbone has a faster form for inference.

    Its submodule `image_encoder` is the backbone; see `models.for_inference`.
    """

    backbone: str
    fused: bool
    """Whether the backbone is in that form."""


# --- modules of families ------------------------------------------------------------


@runtime_checkable
class Family(Protocol):
    """A module of `handjax.models`."""

    PAPER: Paper
    Model: type[nn.Module]
    """Fields are `config.model`; method `init_all` touches every submodule."""

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Return the training stages of a config, in order."""
        ...


@runtime_checkable
class CountsParts(Protocol):
    """A family that counts its parameters as its paper does."""

    def parameter_table(self, variables: Variables) -> Sequence[tuple[str, int]]:
        """Return rows (part, number of parameters)."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A family whose model runs part by part, for `handjax.benchmark --what parts`."""

    PARTS: Mapping[str, str]
    """Part -> method that does what the one before does, and that part more."""


@runtime_checkable
class HasMeasures(Protocol):
    """A family with tables of its paper that `handjax.benchmark` can measure."""

    MEASURES: "Mapping[str, MixingTable | ReductionTable]"
    """Value of `--what` -> table."""


class MixingRow(NamedTuple):
    """A way to mix tokens."""

    name: str
    grid: tuple[int, int]
    """Rows and columns of the tokens."""
    trunk: nn.Module
    """Called with tokens (batch, *grid, width) and `train`."""

    @property
    def tokens(self) -> int:
        """How many are mixed."""
        return self.grid[0] * self.grid[1]


class MixingTable(NamedTuple):
    """Blocks that mix tokens, to be compared (`--what tokens`)."""

    rows: Callable[[Any], Sequence[MixingRow]]
    """`config.model` -> rows of one width, `config.model.width`."""


class ReductionRow(NamedTuple):
    """A network, and the one whose speed its own is compared with."""

    name: str
    fields: Mapping[str, Any]
    """Of `config.model`."""
    host: str
    """Name of a row."""


class ReductionTable(NamedTuple):
    """Networks on one backbone whose heads differ, to be compared (`--what cost`)."""

    rows: Sequence[ReductionRow]
    backbone: str
    """Method of the model: image -> maps."""
    head: str
    """Method: maps -> what is counted."""
    answer: str
    """Method: maps, side of the crop in pixels -> a record with field `output`."""
    constants: Callable[[Any, HandConstants], dict[str, Any]]
    """Model, hand -> its collection `constants`."""
