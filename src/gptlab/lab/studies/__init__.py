"""Questions that are no A/B: noise, scaling, learning rates, searches."""
