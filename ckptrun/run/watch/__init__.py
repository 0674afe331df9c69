"""What looks after a rank while it trains: hangs, signals, failures, files that it opens."""
