"""Every state of the files that a kill or a power cut within a save can leave, from one run of a command."""
