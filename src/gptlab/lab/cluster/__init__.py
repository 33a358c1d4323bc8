"""Training elsewhere: a cluster file, the jobs of a run or an experiment, Slurm, and the same as processes here."""
