"""Runs that a large model judges: which of two continues a text better, or how good one is."""
