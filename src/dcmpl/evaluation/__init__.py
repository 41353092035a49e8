"""Predictions held against opinions, over runs, protocols and data sets."""
