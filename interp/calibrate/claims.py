"""Rows of a calibration's table that claim a number, and those that claim an interval."""

import pandas as pd


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that claim a number: a lower bound does not."""
    return rows[rows["identified"].astype(bool) & rows["value"].notna()]


def bounded(rows: pd.DataFrame) -> pd.DataFrame:
    """Of those, the ones with both ends of an interval."""
    return claims(rows).dropna(subset=["ci_low", "ci_high"])
