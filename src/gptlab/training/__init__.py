"""Training: setup, the loop, stages, soups."""
