"""The machine: devices and precision, processes, checkpoints, run folders, numbers and their display."""
