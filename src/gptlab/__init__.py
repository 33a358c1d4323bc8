"""gptlab: a laboratory for GPT pre-training research on a small budget."""

__version__ = "0.1.0"
