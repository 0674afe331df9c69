"""When a run saves and what it loads: request, stage, write, commit, and the way back."""
