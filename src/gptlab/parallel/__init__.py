"""Several processes, one run: who they are (`World`) and how a model is laid out over them (`Layout`)."""
