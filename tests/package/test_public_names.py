"""Every public name is what it says, in any order of imports."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Runs each order with none of the package's modules loaded; torch is loaded once.
ORDERS = """
import sys, pickle
ORDERS = [
    "from ckptrun import digest",
    "import ckptrun.digest; from ckptrun import digest",
    "import ckptrun.digest.leaves, ckptrun.digest; from ckptrun import digest",
    "from ckptrun.digest import digest",
    "from ckptrun import digest; import ckptrun.digest; from ckptrun import digest",
    "import ckptrun; ckptrun.digest; import ckptrun.digest; digest = ckptrun.digest",
    "import importlib; importlib.import_module('ckptrun.digest'); from ckptrun import digest",
    "from ckptrun import prove, HostStager; from ckptrun import digest",
    "import ckptrun.proof.prove, ckptrun.api; from ckptrun import digest",
    "from ckptrun import *",
    "import ckptrun.digest as digest",
]
import torch
for order in ORDERS:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ckptrun"]:
        del sys.modules[name]
    names = {}
    exec(order, names)
    digest = names["digest"]
    assert type(digest).__name__ == "function" and digest.__name__ == "digest", (order, digest)
    assert len(digest(torch.ones(2))) == 32, order
    assert digest(torch.ones(2)) != digest(torch.zeros(2)), order
    import ckptrun
    from ckptrun.digest import leaves
    assert leaves.__name__ == "ckptrun.digest.leaves", order
    for name in ckptrun.__all__ if order in ORDERS[:2] else ["digest"]:
        value = getattr(ckptrun, name)
        assert getattr(value, "__name__", name) == name, (order, name, value)
        assert name in dir(ckptrun), name
    assert pickle.loads(pickle.dumps(ckptrun.digest)) is ckptrun.digest, order
"""


def test_every_public_name_is_what_it_says_in_any_order_of_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDERS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
