"""Estimators of feature counts against data with a known number of features."""
