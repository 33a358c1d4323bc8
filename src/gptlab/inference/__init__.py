"""Text out: the key-value cache, sampling, batched generation."""
