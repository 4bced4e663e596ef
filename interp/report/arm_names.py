"""Levers and outcomes of an arm by the names that readers know, and what few models can show."""

from interp.report.wording import significant

ALPHA = 0.05
NEARLY_ONE = 0.99
MIN_MODELS = 5
"""Fewer cannot reach .05 in any order."""

NAMES = {"row_decay": "row decay", "matrix_decay": "matrix decay", "base": "base and seeds"}
OUTCOMES = {
    "packing": "packing",
    "loss": "loss",
    "row_overlap": "overlap of the embedding's rows",
    "row_length": "length of the embedding's rows",
}


def lever_name(lever: str) -> str:
    """`row_decay` -> row decay."""
    return NAMES.get(lever, lever.replace("_", " "))


def could_have_shown(rho: float, models: str = "as many") -> str:
    """What so many models would have seen, had they been independent."""
    if rho >= NEARLY_ONE:
        return "so few models can show a perfect order and nothing less"
    return (
        f"a correlation of {significant(rho, 2)} or more among {models} independent models "
        "would have shown four times in five"
    )
