"""What is good: reward functions and their composition."""
