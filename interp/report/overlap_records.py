"""How the rows of dictionaries and output heads overlap, as frozen records."""

from dataclasses import dataclass

from interp.report.interval import Interval


@dataclass(frozen=True)
class DictionaryOverlap:
    """How the decoder rows of one group of seeds overlap: mean squared cosines over pairs."""

    model: str
    control: str
    hook_point: str
    about: str
    headline: bool
    """Of the layer and stream that the headline counts on."""
    d_model: int
    d_sae: int
    k: int | None
    n_seeds: int | None
    overlap: Interval
    centred: Interval
    """The mean row removed."""
    capacity: Interval
    """Summed over the rows: at most d_model."""
    welch_floor: float | None
    random_mean: float | None


@dataclass(frozen=True)
class HeadOverlap:
    """The same of the rows of one output head; no number of it is known where `reason` is."""

    model: str
    n: int | None
    d_model: int | None
    overlap: float | None
    centred: float | None
    top_removed: float | None
    """The mean row and the leading principal components removed."""
    welch_floor: float | None
    random_mean: float | None
    reason: str | None


@dataclass(frozen=True)
class Overlaps:
    """How directions lie to each other in a run; both are empty in runs that did not look."""

    dictionaries: tuple[DictionaryOverlap, ...] = ()
    heads: tuple[HeadOverlap, ...] = ()
