"""Inputs at fault, and what is said of each."""
