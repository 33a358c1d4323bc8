"""Plans: memory, time and dollars of a run before it is trained, and how good the prediction was."""
