"""How often each feature of the toy model is active: a falling law, scaled to a stated density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import UserError

LAWS = ("power", "exponential", "linear")


@dataclass(frozen=True)
class Frequencies:
    """p_i of n features in falling order, with sum p_i = density.

    power: p_i ~ i^-parameter, i = 1..n; exponential: p_i ~ exp(-i / parameter); linear: n + 1 - i.
    Raises UserError where no such probabilities exist.
    Source: Liu, Liu & Gore, arXiv 2505.10465, section 2 and appendix D.
    """

    law: str
    parameter: float
    """Exponent of a power law, scale of an exponential one; 0 for the linear one."""
    n: int
    density: float = 1.0
    """Expected number of active features in one sample."""

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise UserError(f"frequency law {self.law!r} is unknown; choose from {', '.join(LAWS)}")
        if self.n < 1 or not 0 < self.density < np.inf:
            raise UserError(
                f"{self.n} features of density {self.density}; give at least one feature and a "
                "positive density"
            )
        if self.law != "linear" and not 0 < self.parameter < np.inf:
            raise UserError(f"{self.law} law with parameter {self.parameter}; give a positive one")
        most = float(self.probabilities()[0])
        if most > 1 + 1e-9:
            raise UserError(
                f"density {self.density:g} asks for a probability of {most:.3g} of the most "
                f"frequent feature of {self.name}; give at most {self.density / most:.4g}"
            )

    @property
    def name(self) -> str:
        """As in file names and tables: power-1.5, exponential-400, linear."""
        return self.law if self.law == "linear" else f"{self.law}-{self.parameter:g}"

    def probabilities(self) -> Float[np.ndarray, " n"]:
        """p_i, float64."""
        i = np.arange(1, self.n + 1)
        if self.law == "power":
            weights = i**-self.parameter
        elif self.law == "exponential":
            weights = np.exp(-i / self.parameter)
        else:
            weights = (self.n + 1.0) - i
        return self.density * weights / weights.sum()
