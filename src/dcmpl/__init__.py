"""Scores of AI-generated pictures: how good each looks, how well it follows its prompt."""

__version__ = "0.1.0"
