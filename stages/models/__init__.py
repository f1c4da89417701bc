"""Loading a base model and the adapters on it."""
