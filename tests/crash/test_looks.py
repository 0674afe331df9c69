"""What a program has looked at, and which states are the same to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun.crash.content import EMPTY
from ckptrun.crash.files import Entry, Tree
from ckptrun.crash.looks import Looked, read_looks
from ckptrun.crash.trace import LOOKS, strace
from tests.support.strace import needs_strace

pytestmark = needs_strace


def tree(*folders: str, links: dict[str, str] | None = None, **files: bytes) -> Tree:
    entries = {folder: Entry() for folder in folders}
    entries |= {name.replace("__", "/"): Entry(EMPTY.written(0, data)) for name, data in files.items()}
    return Tree(entries | {name: Entry(target=target) for name, target in (links or {}).items()})


def looked(folder: Path, code: str, *, cwd: Path | None = None) -> Looked:
    output = folder / "output"
    (output / "c").mkdir(parents=True)
    (output / "c" / "model").write_bytes(b"model")
    (output / "last").symlink_to("c")
    trace = folder / "looks"
    command = [*strace(trace, LOOKS), sys.executable, "-c", f"import os, sys\nout = {str(output)!r}\n{code}"]
    subprocess.run(command, cwd=cwd or folder, check=True)
    return read_looks({trace: 0}, root=output, cwd=cwd or folder)


@pytest.mark.parametrize(
    ("code", "files", "asked", "folders"),
    [
        ("open(f'{out}/c/model').read()", {"c/model"}, set(), set()),
        ("os.chdir(out); open('c/model').read()", {"c/model"}, set(), set()),
        ("os.path.exists(f'{out}/c/none')", set(), {"c/none"}, set()),
        ("os.listdir(f'{out}/c')", set(), set(), {"c"}),
        ("os.listdir(out)", set(), set(), {""}),
        ("open(f'{out}/last/model').read()", {"last/model", "c/model"}, set(), set()),
        ("d = os.open(out, os.O_RDONLY | os.O_DIRECTORY); os.stat('c/model', dir_fd=d)", set(), {"c/model"}, {""}),
        ("if os.fork() == 0: os.chdir(f'{out}/c'); os.stat('model'); os._exit(0)\nos.wait()", set(), {"c/model"}, set()),
        ("os.system(f'cat {out}/c/model > /dev/null')", {"c/model"}, set(), set()),
    ],
)  # fmt: skip
def test_what_is_looked_at_is_found(code, files, asked, folders, tmp_path) -> None:
    found = looked(tmp_path, code)
    assert files <= found.files
    assert found.files <= files | {"c"}
    assert asked <= found.asked
    assert folders == found.folders


WHOLE = tree("c", c__model=b"model")


@pytest.mark.parametrize(
    ("seen", "one", "other", "is_same"),
    [
        (Looked(files={"c/model"}), tree("c", c__model=b"mod"), tree("c", c__model=b"mode"), False),
        (Looked(files={"c/model"}), tree("c", c__model=b"model"), tree("c", c__model=b"m0del"), False),
        (Looked(files={"c/model"}), tree("c", c__other=b"1"), tree("c", c__other=b"2"), True),
        (Looked(asked={"c/model"}), tree("c", c__model=b"mod"), tree("c", c__model=b"mode"), True),
        (Looked(asked={"c/model"}), tree("c", c__model=b""), tree("c", c__model=b"mode"), False),
        (Looked(asked={"c/model"}), tree("c", c__model=b"mode"), tree("c", c__model=b"model"), False),
        (Looked(asked={"c/model"}), tree("c"), tree("c", c__model=b""), False),
        (Looked(asked={"c/model"}), tree("c"), tree(), False),
        (Looked(folders={"c"}), tree("c", c__a=b"1"), tree("c", c__a=b"2"), True),
        (Looked(folders={"c"}), tree("c", c__a=b"1"), tree("c", c__a=b"1", c__b=b""), False),
        (Looked(folders={""}), tree("c", c__a=b"1"), tree("c", c__a=b"1", c__b=b""), True),
        (Looked(files={"last/a"}), tree("c", links={"last": "c"}, c__a=b"1"), tree("c", links={"last": "c"}, c__a=b"2"), False),
        (Looked(files={"last/a"}), tree("c", links={"last": "c"}, c__a=b"1"), tree("c", links={"last": "d"}, c__a=b"1"), False),
    ],
)  # fmt: skip
def test_states_are_the_same_to_who_saw_no_difference(seen, one, other, is_same) -> None:
    assert (seen.seen_in(one, WHOLE) == seen.seen_in(other, WHOLE)) == is_same
