"""One start of a run: what each rank does from its first step to its report."""
