"""What keeps a run: checkpoints, metrics, display, signals. Knows `nn.Module`, not GPT."""
