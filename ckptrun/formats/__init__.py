"""Checkpoints of every format that the tools read and write: ckptrun, DCP, safetensors, ``torch.save``.

``open_source`` tells the format from the files. Each format has a room of its own with a ``reader`` and a ``writer``;
what they share, the interface first, stands in ``common``.
"""
