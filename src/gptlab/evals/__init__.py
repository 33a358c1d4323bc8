"""Evaluations: loss and bits per byte, multiple choice."""
