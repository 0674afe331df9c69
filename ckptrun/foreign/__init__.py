"""A job that is not ours: somebody's command, started again and again, listened to, and told of in our own words.

``process`` starts the command and leaves nothing of it behind; ``records`` reads what the probe has heard in its ranks;
``alignment`` finds which step a start went on from; ``translation`` writes the ledger and the events that every run
has; ``job`` is the subject of a proof that all of this makes.
"""
