"""Tests of the package of that name."""
