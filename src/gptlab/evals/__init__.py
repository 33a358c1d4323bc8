"""Benchmarks: a file and a record each; what they share is in `benchmark`, `validation` and `multiple_choice`."""
