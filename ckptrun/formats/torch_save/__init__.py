"""Files of ``torch.save``, alone or as parts of one state."""
