"""What a run leaves to be judged by: events, ledger, traces, checks and their verdict; how each is written and read."""
