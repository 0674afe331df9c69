"""What a run is made of, as typed dataclasses: one file per group of ``conf/``; torch-free.

A dataclass holds type, documentation, default and range of a key; YAML holds only choices. ``register`` hands the
dataclasses to Hydra; ``run.RunConfig`` is the whole; :func:`ckptrun.config.run.from_hydra` is the only door from
Hydra's DictConfig to it.
"""
