"""Statistics: tests, intervals, power, scaling laws. Arithmetic on numbers; knows no run."""
