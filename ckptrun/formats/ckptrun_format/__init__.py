"""Checkpoints of ckptrun's own format, read and written through the engine."""
