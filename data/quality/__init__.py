"""What is wrong with records that can each be read: repeats, leaks, biases, personal data. Without torch."""
