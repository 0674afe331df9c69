"""Files of safetensors, and folders of them with an index."""
