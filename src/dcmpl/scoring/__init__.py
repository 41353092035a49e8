"""A trained model at work: engines, scorer, long jobs, files, explanations, export."""
