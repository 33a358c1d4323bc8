"""An experiment: its specification, its runs, what they say, the verdict."""
