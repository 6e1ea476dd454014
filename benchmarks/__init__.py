"""Races against the peers of this package: medians of interleaved rounds, never single times."""
