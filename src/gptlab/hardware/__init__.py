"""The machine: devices and precision, memory, the compiler, the table of GPUs."""
