"""A trained model at work: engines, the scorer, long jobs, files of scores, explanations, export."""
