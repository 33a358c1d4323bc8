"""What a run leaves on disk, and how it is read again: config, sessions, code, numbers, facts. Never imports torch."""
