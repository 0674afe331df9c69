"""Readers of checkpoints of several formats, all behind :class:`~ckptrun.tools.sources.interface.Source`.

``ckptrun_format``, ``dcp_format``, ``torch_format`` and ``safetensors_format`` each know one format. ``pieces`` puts
slabs together from boxes, ``pickle_records`` reads pickles without running anything that they name, ``torch_blob``
finds the bytes of a tensor in what ``torch.save`` wrote, ``files`` reads ranges of files.
"""
