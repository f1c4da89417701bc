"""What is read: records, sources, chat templates, collators, samples."""
