"""Runs behind HTTP, as OpenAI's clients expect it: what is asked, what is answered, the server."""
