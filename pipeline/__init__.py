"""When things run: the command line, the Prefect flow, the store, tracking."""
