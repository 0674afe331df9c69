"""Single elements of tensors: as text and bits, how far apart they are, and where two tensors differ.

Must not know files, checkpoints or ranks, nor print.
"""
