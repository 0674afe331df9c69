"""What the fork server imports, once, so that ranks start in tenths of a second. Nobody else imports this.

Everything that is loaded here is shared by all ranks and never collected: freezing it spares each rank a walk over all
of torch's objects whenever Python's collector does its rounds, and the copies of memory pages that this walk causes.
"""

import gc

# The first DTensor imports the compiler; every rank would do it again.
import torch._dynamo  # noqa: F401

import ckptrun.launch.rank  # noqa: F401

gc.collect()
gc.freeze()
