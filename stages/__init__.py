"""How things run: one folder a stage, and what the stages share."""
