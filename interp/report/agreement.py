"""Do the seeds of a dictionary find the same: live latents, found again, and by chance."""

import pandas as pd

from interp.report.tables import ARCHITECTURES, Table, folded, models_first
from interp.report.wording import CONTROLS, percent, significant, whole

QUANTITIES = {
    "live_latents_mean": "Live latents of a seed",
    "reproducible_before_null": "Found by {found_by}",
    "reproducible_all_seeds": "Found by all seeds",
    "reproducible_null": "Found by chance",
    "match_threshold": "Cosine of a match, at least",
}


def agreement_table(results: pd.DataFrame | None, found_by: str) -> Table | None:
    """One line per model, control, place and dictionary; None where nothing was matched."""
    keys = ["model", "control", "hook_point", "about", "d_sae", "k"]
    if results is None or not {"quantity", "value", "role", *keys} <= set(results.columns):
        return None
    several = "architecture" in results and results["architecture"].nunique() > 1
    if several:
        keys.insert(4, "architecture")
    kept = results[results["quantity"].isin(list(QUANTITIES)) & (results["role"] == "main")]
    # Rules for k that agree share their dictionaries, and say the same twice.
    wide = kept.drop_duplicates([*keys, "quantity"]).pivot(
        index=keys, columns="quantity", values="value"
    )
    wide = wide.reindex(columns=list(QUANTITIES)).dropna()
    if wide.empty:
        return None
    rows = []
    for place in kept[keys].drop_duplicates().itertuples(index=False, name=None):
        if place not in wide.index:
            continue
        live, found, everywhere, chance, cosine = wide.loc[place]
        rows.append(
            (
                place[0],
                CONTROLS.get(place[1], place[1]),
                *place[2:4],
                *(ARCHITECTURES.get(kind, kind) for kind in place[4:-2]),
                *map(whole, place[-2:]),
                *map(whole, (live, found, everywhere)),
                significant(chance, 2),
                percent(everywhere / live if live else None),
                significant(cosine, 2),
            )
        )
    first, *more = (text.replace("{found_by}", found_by) for text in QUANTITIES.values())
    columns = ("Model", "Weights", "Hook point", "Stream", *["SAE"] * several, "D", "k", first,
               *more[:-1], "By all seeds, share of live", more[-1])  # fmt: skip
    return folded(columns, models_first(rows), {"Hook point", "Stream", "k"})
