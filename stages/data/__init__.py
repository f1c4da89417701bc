"""The data stage: records from every source, split by hash."""
