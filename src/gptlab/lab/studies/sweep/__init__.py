"""Search: many trials of a config by Optuna, each an ordinary run that is found again by its hash.

The study lives in SQLite, so that the same command goes on with it, and several at once share it. What is best of many
trials is best partly by luck: its value here is too good, and the runs that chose it are no evidence for it.
"""
