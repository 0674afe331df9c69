"""What the formats share: what a source and a selection of its leaves are, and how files are told apart."""
