"""One module for each larger command."""
