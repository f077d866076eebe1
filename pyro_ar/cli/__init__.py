"""The command line: the app, and a file for each command."""
