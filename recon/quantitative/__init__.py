"""Quantitative MRI: maps of tissue parameters from series of contrasts."""
