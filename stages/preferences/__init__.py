"""Sampling responses and ranking them."""
