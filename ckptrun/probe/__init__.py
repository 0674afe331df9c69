"""What listens in a job that is not ours, and the one thing that its code may say to it.

:func:`step` is for the user's code, and nobody needs it. Everything else lives in ``site/``: a folder that ``ckptrun
prove -- COMMAND`` puts first on ``PYTHONPATH`` of the command, for whatever interpreter that has. So nothing there
imports ckptrun, nor anything but the standard library until the job has imported torch.
"""

from ckptrun.probe.mark import step
from ckptrun.probe.place import PLAN_VARIABLE, site_folder

__all__ = ["PLAN_VARIABLE", "site_folder", "step"]
