"""Comparisons that end in a verdict. Read states and records; change neither."""
