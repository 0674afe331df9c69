"""Where the bytes of a checkpoint go: one interface; local file systems, anything that fsspec opens, S3."""
