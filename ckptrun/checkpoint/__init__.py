"""Group ``checkpoint``: what is saved and loaded, and how it lies on storage.

Nothing is imported here: ``manifest``, ``layout`` and ``commit`` are torch-free, and tools rely on that. From bytes
upwards: ``backend``, ``shard_file``, ``manifest``, ``commit``, ``storage``, ``staging`` (the interfaces of
torch.distributed.checkpoint), ``state`` (leaves, components), ``policy`` (when, what to keep), ``manager``, ``load``.
"""
