"""The experiments of the command line: what they measure, without the pictures and the tables."""
