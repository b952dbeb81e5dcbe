"""The jobs and the command line."""
