"""Proximal policy optimisation with a KL penalty."""
