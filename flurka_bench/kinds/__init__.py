"""The kinds of run: timing and error."""
