"""Folders of torch.distributed.checkpoint (DCP)."""
