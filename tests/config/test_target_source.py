"""What is surely missing of the user's own code is told without running it, and nothing else is refused."""

import re

import pytest

from ckptrun.config.target_source import check_source
from ckptrun.errors import ConfigError

SOURCE = """
import sys
from collections import OrderedDict
from dataclasses import dataclass
print("this must not run"); sys.exit(3)
class Net:
    def __init__(self, width=4, *, depth): ...
class Bare: ...
class Inherits(OrderedDict): ...
class Optimizer:
    def __init__(self, groups, lr, momentum=0.9): ...
class Data:
    def __init__(self, rank, size=3): ...
@dataclass
class Decorated:
    width: int
def build(**options): ...
def no_arguments(): ...
NUMBER = 3
other = build
if NUMBER:
    class Maybe:
        def __init__(self, a): ...
else:
    Maybe = build
try:
    import torch_that_is_not_there as backend
except ImportError:
    backend = None
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("class Net:\n    def __init__(self:\n")
    (tmp_path / "star.py").write_text("from mine import *\n")
    (tmp_path / "lazy.py").write_text("def __getattr__(name): ...\n")
    package = tmp_path / "package_of_mine"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this must not run')\n")
    (package / "deep" / "net.py").write_text("class Net: ...\n")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "target", "args", "said"),
    [
        ("model", "nowhere.py:Net", {}, r"model._target_: there is no file .*nowhere\.py\."),
        ("model", "no_such_package.net.Net", {}, r"model._target_: there is no module 'no_such_package.net' in .*path/to/file"),
        ("model", "package_of_mine.nett.Net", {}, r"there is no module 'package_of_mine.nett'"),
        ("model", "mine.below.Net", {}, r"there is no module 'mine.below'"),
        ("model", "mine.Nett", {}, r"model._target_='mine.Nett': mine has no class or function 'Nett'; did you mean Net\?"),
        ("model", "mine.py:Zzz", {}, r"mine.py has no class or function 'Zzz'\."),
        ("data", "broken.py:Net", {}, r"data._target_: .*broken.py, line 2: "),
        ("model", "mine.NUMBER", {}, r"'NUMBER' in mine is no class or function"),
        ("model", "Net", {}, r"names no class"),
        ("model", "mine.Net", {}, r"model: Net\(.*\) is called with model.args, and cannot be: missing a required.* 'depth'"),
        ("model", "mine.Net", {"depth": 1, "widht": 2}, r"model: Net.* unexpected keyword argument 'widht'"),
        ("model", "mine.no_arguments", {"a": 1}, r"unexpected keyword argument 'a'"),
        ("optimizer", "mine.Optimizer", {"beta": 1}, r"optimizer: .* unexpected keyword argument 'beta'"),
        ("schedule", "mine.no_arguments", {}, r"schedule: .* too many positional arguments"),
        ("components.best", "mine.Net", {}, r"components.best: Net"),
        ("optimizer", "torch.optim.Adamm", {}, r"torch.optim has no class or function 'Adamm'; did you mean Adam"),
    ],
)  # fmt: skip
def test_what_is_surely_wrong_is_told(key, target, args, said) -> None:
    with pytest.raises(ConfigError) as caught:
        check_source(key, target, args)
    assert re.search(said, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("key", "target", "args"),
    [
        ("model", "mine.Net", {"depth": 1}),
        ("model", "./mine.py:Net", {"depth": 1, "width": 2}),
        ("model", "mine.Bare", {}),
        ("model", "mine.Inherits", {"anything": 1}),
        ("model", "mine.Decorated", {"width": 1}),
        ("model", "mine.build", {"anything": 1}),
        ("model", "mine.other", {"anything": 1}),
        ("model", "mine.Maybe", {}),
        ("model", "mine.OrderedDict", {}),
        ("model", "mine.backend", {}),
        ("model", "star.Whatever", {}),
        ("model", "lazy.Whatever", {}),
        ("model", "package_of_mine.deep.net.Net", {}),
        ("optimizer", "mine.Optimizer", {"momentum": 0.5}),
        ("optimizer", "torch.optim.Adam", {}),
        ("schedule", "torch.optim.lr_scheduler.StepLR", {"step_size": 2}),
        ("model", "torch.nn.Linear", {"whatever": 1}),
        ("data", "mine.Data", {}),
    ],
)
def test_what_only_an_import_can_tell_is_left_to_it(key, target, args) -> None:
    check_source(key, target, args)
