"""Kills of the smoke flow at random moments, resumed, and compared with a run that nobody interrupted."""
