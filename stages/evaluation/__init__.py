"""Comparison of the policy with its reference on held-out prompts."""
