"""Starts ranks, and what each of them does from its first line to its exit code. Torch-free to import."""
