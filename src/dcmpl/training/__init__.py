"""One training loop for every preset; calibration at its end."""
