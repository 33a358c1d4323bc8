"""What a run will cost, before it is run; and afterwards, how good the prediction was."""
