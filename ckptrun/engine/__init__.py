"""The storage engine: named leaves as safetensors shards and a JSON manifest, committed at once or not at all.

Knows no run: it stands alone behind torch.distributed.checkpoint (DCP).
"""
