"""Levers and outcomes of an arm by the names that readers know."""

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
