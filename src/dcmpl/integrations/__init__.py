"""Scoring inside of other programs and engines; each file needs its own package, or none."""
