"""Comparisons that end in a verdict. Reads states and records; changes neither."""
