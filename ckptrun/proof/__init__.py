"""A proof: a job is run, killed, resumed and judged; a cause is looked for."""
