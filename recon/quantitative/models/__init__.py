"""Signal models, one a file."""
