"""Reworded copies of training records: by rules with words, and by a model behind an endpoint."""
