"""Writers of checkpoints of several formats: each takes a selection of leaves, and the place where it is written.

What they write is opened again and compared before it gets its name, so each says how it is opened.
"""
