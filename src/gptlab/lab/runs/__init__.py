"""Runs on disk, and training the ones that are missing."""
