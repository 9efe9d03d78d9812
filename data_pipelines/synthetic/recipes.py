"""Named recipes of the scenes: how often hands hold things, are covered, seen edge-on.

"default" is what every built-in data set was made with. "photos" is for models that
must work on photographs: things seldom float in front of the hand, more hands are seen
edge-on, and fingers have sizes of their own.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """Probabilities and spreads that decide the scenes."""

    hold: float = 0.35
    """Share of hands that hold a thing."""
    in_the_way: float = 0.15
    """Share of scenes with a thing that touches nothing."""
    least_visible: float = 0.35
    """Share of the hand's silhouette that must be seen; other scenes are drawn
    again."""
    edge_on: float = 0.0
    """Share of hands whose palm is within about 20 degrees of the line of sight."""
    upright: float = 0.0
    """Share of hands that show palm or back, with the fingers up."""
    finger_length: float = 0.0
    """Standard deviation of the logarithm of each finger's own length."""
    finger_width: float = 0.0
    """The same of each finger's thickness."""
    width: float = 0.0
    """The same of the thickness that the five fingers share."""

    @property
    def has_betas(self) -> bool:
        """Whether the ten shape coefficients describe the hands."""
        return not (self.finger_length or self.finger_width or self.width)


RECIPES = {
    "default": Recipe(),
    "photos": Recipe(
        hold=0.3,
        in_the_way=0.05,
        least_visible=0.5,
        edge_on=0.3,
        upright=0.2,
        finger_length=0.035,
        finger_width=0.04,
        width=0.07,
    ),
}
