"""The cells of the calibration: data with a known number of features, and the k that meets them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from interp.errors import UserError
from saes.synthetic import SyntheticConfig


class Cell(BaseModel):
    """One kind of data and one k. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(gt=0)
    n_per_dim: float = Field(gt=0)
    """True features per dimension."""
    l0: float = Field(gt=0)
    k_ratio: float = Field(default=1.0, gt=0)
    """k of the SAEs / true L0, which on a model is unknown."""
    zipf: float = 0.0
    correlation: float = 0.0
    children: int = 0
    noise: float = 0.0

    @property
    def n_features(self) -> int:
        return round(self.n_per_dim * self.d_in)

    @property
    def k(self) -> int:
        return max(1, round(self.k_ratio * self.l0))

    @property
    def name(self) -> str:
        """Also the name of its files: d64-n4-z0.5-l4-k1, then what else there is."""
        parts = [f"d{self.d_in}", f"n{self.n_per_dim:g}", f"z{self.zipf:g}", f"l{self.l0:g}"]
        parts.append(f"k{self.k_ratio:g}")
        for letter, value in (("c", self.correlation), ("h", self.children), ("e", self.noise)):
            parts += [f"{letter}{value:g}"] if value else []
        return "-".join(parts)

    @property
    def structure(self) -> str:
        """In words, what its features are beside independent."""
        words = (("correlated", self.correlation), ("hierarchy", self.children))
        named = [word for word, there in (*words, ("noise", self.noise)) if there]
        return ", ".join(named) or "independent"

    def data(self, seed: int) -> SyntheticConfig:
        """One draw of directions and ranks."""
        return SyntheticConfig(
            d_in=self.d_in,
            n_features=self.n_features,
            l0=self.l0,
            zipf=self.zipf,
            correlation=self.correlation,
            children=self.children,
            noise=self.noise,
            seed=seed,
        )

    def group(self, largest_d_sae: int) -> str | None:
        """The gated cells that this one belongs to (`gates.yaml`), or None.

        A gate is about one difficulty at a time, inside the region that SCIENCE section 5 states:
        Zipf <= 1, n/d <= 8, largest dictionary >= 2n, no noise.
        """
        difficulties = {
            "k_half": self.k_ratio == 0.5,
            "k_double": self.k_ratio == 2,
            "correlation": self.correlation > 0,
            "hierarchy": self.children > 0,
        }
        met = [name for name, there in difficulties.items() if there]
        inside = self.zipf <= 1 and self.n_per_dim <= 8 and largest_d_sae >= 2 * self.n_features
        if self.noise or not inside or len(met) > 1:
            return None
        if met:
            return met[0]
        return "independent" if self.k_ratio == 1 else None


class CalibrationConfig(BaseModel):
    """What determines a calibration. Frozen; its file in a folder says whose the folder is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    cells: tuple[Cell, ...] = Field(min_length=1)
    n_replicates: int = Field(gt=0)
    """Draws of every cell: other directions, rows and SAE seeds each time."""
    first_replicate: int = Field(default=0, ge=0)
    """Their numbers begin here, beyond those that anyone has looked at."""
    d_sae_per_d_in: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8, 16), min_length=4)
    """The same in every cell: whoever counts does not know n. More than four, because some will not
    converge and N needs four that did."""
    n_seeds: int = Field(default=5, ge=3)
    n_rows: int = Field(default=1_048_576, ge=4_096)
    """Training rows of each SAE, at least."""
    rows_per_latent: int = Field(default=0, ge=0)
    """Training rows of a larger one, per latent: without more rows larger ones do not converge."""
    largest_holds_twice: bool = False
    """Double all sizes of a cell until the largest holds twice its features, as one goes on with
    larger dictionaries until the count stops growing."""
    held_out_rows: int = Field(default=32_768, ge=2_048)
    rows_per_document: int = Field(default=128, gt=0)
    """The rows are independent, so documents are runs of them; only the intervals need them."""

    def sizes(self, cell: Cell) -> tuple[int, ...]:
        """d_sae of the cell's dictionaries, ascending."""
        sizes = sorted(m * cell.d_in for m in self.d_sae_per_d_in)
        while self.largest_holds_twice and sizes[-1] < 2 * cell.n_features:
            sizes = [2 * size for size in sizes]
        return tuple(sizes)

    def rows(self, d_sae: int) -> int:
        """Training rows of a dictionary of this size."""
        return max(self.n_rows, self.rows_per_latent * d_sae)

    def group(self, cell: Cell) -> str | None:
        return cell.group(self.sizes(cell)[-1])


def refusal(error: ValidationError, what: str) -> UserError:
    """The first wrong field of `what`, in a line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return UserError(f"{what}: {field}: {first['msg']} (got {first['input']!r})")
