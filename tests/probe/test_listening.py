"""The probe in a job's processes: it hears what they do, and they do not notice."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ckptrun.foreign.records import read_heard
from tests.support.job_python import JOB_PYTHON
from tests.support.listened import Piece, listen, listen_to_pieces, write_plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "jobs"

STEP = """
import torch
p = torch.nn.Parameter(torch.ones(2)); o = torch.optim.SGD([p], lr=1.0)
def step():
    p.sum().backward(); o.step(); o.zero_grad()
"""

PIECES = {
    "unnamed": f"{STEP}\nstep()",
    "closure": """
import torch
m = torch.nn.Linear(2, 1); o = torch.optim.LBFGS(m.parameters(), max_iter=3)
def closure():
    o.zero_grad(); l = m(torch.ones(1, 2)).square().sum(); l.backward(); return l
o.step(closure); o.step(closure)
""",
    "accumulation": f"{STEP}\nfor i in range(2):\n    p.sum().backward(); p.prod().backward(); step()",
    "gan": """
import torch
a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
oa, ob = torch.optim.Adam(a.parameters()), torch.optim.Adam(b.parameters())
for i in range(3):
    for m, o in ((a, oa), (b, ob)):
        m(torch.ones(1, 2)).sum().backward(); o.step(); o.zero_grad()
""",
    "built_anew": """
import gc, torch
m = torch.nn.Linear(2, 2)
for phase in range(2):
    o = torch.optim.Adam(m.parameters())
    for i in range(2):
        m(torch.ones(1, 2)).sum().backward(); o.step(); o.zero_grad()
    del o; gc.collect()
""",
    "overflow": """
import torch
m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=1.0)
s = torch.amp.GradScaler('cpu', init_scale=4.0)
for i in range(3):
    x = torch.full((1, 2), float('inf') if i == 1 else 1.0)
    s.scale(m(x).sum()).backward(); s.step(o); s.update(); o.zero_grad()
""",
    "made_before_it_is_loaded": f"""{STEP}
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
m = torch.nn.Linear(2, 2); o2 = torch.optim.Adam(m.parameters())
get_optimizer_state_dict(m, o2)
m(torch.ones(1, 2)).sum().backward(); o2.step()
""",
    "odd_state": f"""{STEP}
class Odd(dict):
    def items(self): raise RuntimeError('odd')
o.state[p] = Odd(); step(); print('done')
""",
    "quiet": f"{STEP}\nstep()\ntorch.save(o.state_dict(), 'x.pt'); torch.load('x.pt')",
    "in_memory": f"""{STEP}
import io
step(); memory = io.BytesIO(); torch.save(o.state_dict(), memory)
with open('state.part', 'wb') as file: file.write(memory.getvalue())
import os; os.replace('state.part', 'state.ckpt')
step()
""",
    "wrapped": """
import torch
m = torch.compile(torch.nn.Sequential(torch.nn.Linear(2, 2)), backend='eager'); o = torch.optim.SGD(m.parameters(), lr=1.0)
m(torch.ones(1, 2)).sum().backward(); o.step()
""",
    "batches": """
import torch
from torch.utils.data import DataLoader
class Pairs(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return {'x': torch.full((2,), float(i)), 'name': f'sample {i}', 'n': i}
m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=1.0)
for workers in (0, 1):
    for batch in DataLoader(Pairs(), batch_size=2, num_workers=workers):
        m(batch['x']).sum().backward(); o.step()
""",
    "drawn_batches": """
import torch
from torch.utils.data import DataLoader
m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=1.0)
own = torch.Generator().manual_seed(1)
for shuffled in ({}, {'shuffle': True}, {'shuffle': True, 'generator': own}, {'num_workers': 1}):
    for batch in DataLoader([torch.ones(2)] * 4, batch_size=2, **shuffled):
        m(torch.nn.functional.dropout(batch)).sum().backward(); o.step()
""",
    "odd_batches": """
import dataclasses, torch
from torch.utils.data import DataLoader
@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    itself: object = None
def collate(samples):
    found = Sample(torch.stack([torch.full((2,), float(i)) for i in samples]))
    found.itself = found
    return found
m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=1.0)
for batch in DataLoader(range(6), batch_size=2, collate_fn=collate):
    m(batch.x).sum().backward(); o.step()
""",
    "container": """
import torch
class Container(torch.optim.Optimizer):
    def __init__(self, parts):
        super().__init__([p for part in parts for group in part.param_groups for p in group['params']], {'lr': 9.0})
        self.parts = parts
    def step(self, closure=None):
        for part in self.parts: part.step()
m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
parts = [torch.optim.SGD(m[0].parameters(), lr=0.5, momentum=0.9), torch.optim.SGD(m[1].parameters(), lr=0.25, momentum=0.9)]
for part in parts:
    for p in part.param_groups[0]['params']: part.state[p]['momentum_buffer'] = torch.ones_like(p)
o = Container(parts)
for _ in range(2):
    m(torch.ones(1, 2)).sum().backward(); o.step(); m.zero_grad()
""",
    "turns": """
import torch
m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
both = [torch.optim.Adam(m[0].parameters()), torch.optim.SGD(m[1].parameters(), lr=0.1)]
for i in range(5):
    m(torch.ones(1, 2)).sum().backward(); both[i % 2].step(); m.zero_grad()
    if i == 2: torch.save({'both': [o.state_dict() for o in both]}, 'state.pt')
""",
    "background": """
import threading, torch
m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
both = [torch.optim.Adam(m[0].parameters()), torch.optim.SGD(m[1].parameters(), lr=0.1)]
def save(): torch.save({'both': [o.state_dict() for o in both]}, 'state.pt')
for i in range(2):
    m(torch.ones(1, 2)).sum().backward(); both[0].step()
    thread = threading.Thread(target=save); thread.start(); thread.join()
    both[1].step(); m.zero_grad()
""",
    "second_first": """
import torch
a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)
oa, ob = torch.optim.Adam(a.parameters()), torch.optim.Adam(b.parameters())
for m, o in ((b, ob), (a, oa)):
    m(torch.ones(1, 2)).sum().backward(); o.step()
""",
    "by_number": f"""{STEP}
import os, tempfile
step(); number, path = tempfile.mkstemp(dir='.')
with os.fdopen(number, 'wb') as file: torch.save({{'optim': o.state_dict()}}, file)
os.replace(path, 'state.pt')
""",
    "other_formats": f"""{STEP}
import numpy, pickle
from safetensors import safe_open
from safetensors.torch import save_file
step(); numpy.savez('state', p=p.detach().numpy(), at=numpy.int64(1))
step(); pickle.dump({{'p': p, 'rng': torch.get_rng_state()}}, open('state.pkl', 'wb'))
step(); save_file({{'p': p}}, 'state.safetensors')
numpy.load('state.npz'); pickle.load(open('state.pkl', 'rb'))
with safe_open('state.safetensors', 'pt') as file: file.keys()
""",
    "counted": f"{STEP}\nfrom ckptrun.probe import step as count\nstep(); count(8)",
}
KILLS = {"sigkill": -9, "exit": 1, "exception": 1}
SAVE = f"{STEP}\nstep(); torch.save({{'optim': torch.ones(50_000)}}, 'state.pt')"


def fault(kind: str, point: str = "after_optimizer", step: int = 2, **rest: object) -> dict[str, object]:
    return {"index": 0, "kind": kind, "point": point, "step": step, "ranks": [0], "share": 0.25, **rest}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> dict[str, Piece]:
    killed = {kind: f"{STEP}\nfor i in range(4): step()" for kind in KILLS}
    folder = tmp_path_factory.mktemp("pieces")
    return listen_to_pieces(folder, {**PIECES, **killed, "whole_save": SAVE}, {kind: fault(kind) for kind in KILLS})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A whole job, and in ``alone`` the same without the probe."""
    folder = tmp_path_factory.mktemp("plain")
    command = (JOB_PYTHON, str(EXAMPLES / "plain.py"), "--output_dir")
    alone = subprocess.Popen([*command, folder / "alone"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    ended = listen(write_plan(folder), *command, str(folder / "output"))
    assert ended.returncode == 0, ended.stderr
    assert alone.wait() == 0
    return folder


def test_every_step_is_heard(plain):
    (heard,) = read_heard(plain / "records")
    (rank,) = heard.ranks
    assert [step.number for step in rank.steps] == list(range(1, 25))
    assert rank.has_ended
    assert heard.errors == []
    first = rank.steps[0]
    weights = {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    assert set(first.after) == {f"model.{name}" for name in weights}
    assert set(first.gradients) == {f"gradients.{name}" for name in weights}
    assert {"buffers.1.running_mean", "buffers.1.running_var"} < set(first.before)
    assert {"optimizer.4.bias.exp_avg", "optimizer.4.bias.step"} < set(first.moments)
    assert float.fromhex(first.plain["schedule.learning_rate.0"]) == 1e-2
    assert all(len(step.losses) == len(step.batches) == 1 for step in rank.steps)
    assert len({step.batches[0].digest for step in rank.steps}) == 24


def test_saves_are_heard_with_their_step(plain):
    (heard,) = read_heard(plain / "records")
    saves = heard.ranks[0].saves
    assert [save.step for save in saves] == [4, 8, 12, 16, 20, 24]
    assert all(save.is_done and save.is_resumable and save.is_followed for save in saves)
    assert saves[0].path == plain / "output" / "checkpoint-4.tmp"
    assert heard.ranks[0].renames[0] == (saves[0].path, plain / "output" / "checkpoint-4.pt")


def test_the_job_computes_the_same_bits_without_it(plain):
    for step in range(4, 25, 4):
        name = f"checkpoint-{step}.pt"
        assert (plain / "alone" / name).read_bytes() == (plain / "output" / name).read_bytes()


def test_a_job_without_torch_does_not_load_it(tmp_path):
    code = "import sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    ended = listen(write_plan(tmp_path), JOB_PYTHON, "-c", code)
    assert (ended.stdout.split(), ended.stderr) == (["False", "False"], "")
    assert not list((tmp_path / "records").iterdir())


def test_the_jobs_own_sitecustomize_runs(tmp_path):
    own = tmp_path / "own" / "sitecustomize.py"
    own.parent.mkdir()
    own.write_text("import builtins; builtins.mine = 'here'")
    code = "import sitecustomize; print(mine, sitecustomize.__file__)"
    ended = listen(write_plan(tmp_path), JOB_PYTHON, "-c", code, PYTHONPATH=str(own.parent))
    assert ended.stdout.split() == ["here", str(own)]


def test_a_child_of_a_child_is_heard(tmp_path):
    middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STEP + 'step()'!r}], check=True)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {middle!r}], check=True)"
    assert listen(write_plan(tmp_path), JOB_PYTHON, "-c", outer).returncode == 0
    (heard,) = read_heard(tmp_path / "records")
    assert heard.steps == 1


@pytest.mark.parametrize("environment", ["{'PATH': os.environ['PATH']}", "{**os.environ, 'PYTHONPATH': '/elsewhere'}"])
def test_a_child_with_an_environment_of_its_own_is_heard(environment, tmp_path):
    child = "import sys; from _ckptrun_probe import begin; begin._listener.record.event('end', step=0); print(sys.path)"
    code = (
        f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], env={environment}, check=True)"
    )
    ended = listen(write_plan(tmp_path), JOB_PYTHON, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ("/elsewhere" in ended.stdout) is ("/elsewhere" in environment)
    assert len(list((tmp_path / "records").iterdir())) == 1


def test_a_proof_that_is_over_disturbs_nobody(tmp_path):
    ended = listen(tmp_path / "gone.json", JOB_PYTHON, "-c", "print('fine')")
    assert (ended.stdout, ended.stderr) == ("fine\n", "")


def test_a_parameter_that_no_module_has_is_named_by_its_place(pieces):
    assert list(pieces["unnamed"].heard.ranks[0].steps[0].after) == ["model.parameter[0]"]


def test_moments_in_lists_are_moments(pieces):
    first, second = pieces["closure"].heard.ranks[0].steps
    assert "optimizer.weight.old_dirs.0" in first.moments
    assert first.moments["optimizer.weight.old_dirs.0"] != second.moments["optimizer.weight.d"]


@pytest.mark.parametrize(("piece", "losses"), [("closure", [3, 1]), ("accumulation", [3, 3])])
def test_several_backward_passes_are_one_step(pieces, piece, losses):
    (rank,) = pieces[piece].heard.ranks
    assert [len(step.losses) for step in rank.steps] == losses
    assert all(step.gradients for step in rank.steps)


def test_two_optimizers_are_one_step(pieces):
    (rank,) = pieces["gan"].heard.ranks
    assert [step.updates for step in rank.steps] == [[0, 1]] * 3
    assert len(rank.steps[2].after) == 4
    assert {name.split(".")[1] for name in rank.steps[2].moments} >= {"#1"}


def test_of_optimizers_that_take_turns_every_update_may_be_a_step(pieces):
    piece = pieces["turns"]
    (rank,) = piece.heard.ranks
    assert rank.is_saved_within
    assert [step.updates for step in rank.steps] == [[0, 1], [0, 1], [0]]
    (heard,) = read_heard(piece.folder / "records", by_update=True)
    (rank,) = heard.ranks
    assert [step.updates for step in rank.steps] == [[0], [1], [0], [1], [0]]
    assert [save.step for save in rank.saves] == [3]
    assert rank.signs == {0: "Adam 0.bias 0.weight", 1: "SGD 1.bias 1.weight"}


def test_optimizers_that_save_in_between_are_not_taken_to_take_turns(pieces):
    assert not pieces["gan"].heard.ranks[0].is_saved_within
    # Where a thread comes is chance.
    assert not pieces["background"].heard.ranks[0].is_saved_within
    assert pieces["background"].heard.ranks[0].saves[0].in_background


def test_names_and_places_are_those_of_the_reference_whichever_optimizer_is_stepped_first(pieces, tmp_path):
    piece = pieces["second_first"]
    (rank,) = piece.heard.ranks
    assert rank.signs == {0: "Adam Linear.bias Linear.weight", 1: "Adam bias weight"}
    plan = write_plan(tmp_path)
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"optimizers": [rank.signs[1], rank.signs[0]]}))
    assert listen(plan, JOB_PYTHON, "-c", PIECES["second_first"]).returncode == 0
    (heard,) = read_heard(tmp_path / "records")
    assert heard.ranks[0].signs == {1: rank.signs[0], 0: rank.signs[1]}


def test_a_file_that_is_known_by_its_number_has_its_name(pieces):
    piece = pieces["by_number"]
    (rank,) = piece.heard.ranks
    (save,) = rank.saves
    assert save.step == 1
    assert rank.renames == [(save.path, piece.folder / "state.pt")]


def test_other_formats_are_saved_and_loaded_too(pieces):
    piece = pieces["other_formats"]
    (rank,) = piece.heard.ranks
    names = [piece.folder / f"state.{suffix}" for suffix in ("npz", "pkl", "safetensors")]
    assert [(save.path, save.step, list(save.content)) for save in rank.saves] == [
        (names[0], 1, ["p"]),
        (names[1], 2, ["p"]),
        (names[2], 3, ["p"]),
    ]
    assert [save.content["p"] for save in rank.saves] == [step.after["model.parameter[0]"] for step in rank.steps]
    assert [load.path for load in rank.loads] == names


def test_an_optimizer_that_is_built_anew_goes_on_counting(pieces):
    (rank,) = pieces["built_anew"].heard.ranks
    assert [step.updates for step in rank.steps] == [[0]] * 4


def test_a_step_that_the_loss_scaler_leaves_out_has_its_place(pieces):
    steps = pieces["overflow"].heard.ranks[0].steps
    assert [step.skipped for step in steps] == [False, True, False]
    assert float.fromhex(steps[2].plain["scaler.scale"]) == 2.0


def test_state_that_is_made_to_be_loaded_is_no_step(pieces):
    (rank,) = pieces["made_before_it_is_loaded"].heard.ranks
    assert len(rank.steps) == 1
    assert len(rank.steps[0].losses) == 1


def test_what_goes_wrong_in_the_probe_does_not_reach_the_job(pieces):
    assert pieces["odd_state"].printed == "done\n"
    assert any("odd" in error for error in pieces["odd_state"].heard.errors)


def test_nothing_is_printed(pieces):
    assert (pieces["quiet"].printed, pieces["quiet"].exit_code) == ("", 0)
    assert pieces["quiet"].heard.ranks[0].loads[0].path == pieces["quiet"].folder / "x.pt"


def test_what_is_saved_in_memory_is_the_file_that_is_written_next(pieces):
    piece = pieces["in_memory"]
    (rank,) = piece.heard.ranks
    (save,) = rank.saves
    assert (save.path, save.step, save.is_done) == (piece.folder / "state.part", 1, True)
    assert rank.renames == [(piece.folder / "state.part", piece.folder / "state.ckpt")]


def test_an_optimizer_that_steps_others_has_their_moments_and_options(pieces):
    first, second = pieces["container"].heard.ranks[0].steps
    names = {f"optimizer.{place}.{leaf}.momentum_buffer" for place in (0, 1) for leaf in ("weight", "bias")}
    assert set(first.moments_before) == set(first.moments) == set(second.moments) == names
    # What was there before the first step, as it was put there.
    assert len({first.moments_before[f"optimizer.{place}.bias.momentum_buffer"] for place in (0, 1)}) == 1
    assert second.moments_before is None
    rates = {name: float.fromhex(value) for name, value in first.plain.items() if "learning_rate" in name}
    assert rates == {"schedule.learning_rate.0": 0.5, "schedule.inner1.learning_rate.0": 0.25}


def test_wrappers_leave_no_trace_in_names(pieces):
    assert set(pieces["wrapped"].heard.ranks[0].steps[0].after) == {"model.0.weight", "model.0.bias"}


def test_batches_are_told_by_what_is_in_them(pieces):
    steps = pieces["batches"].heard.ranks[0].steps
    digests = [step.batches[0].digest for step in steps]
    assert len(digests) == 6
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3
    assert {batch.label for step in steps for batch in step.batches} == {"Pairs"}


def test_it_is_known_whether_batches_come_of_a_random_stream(pieces):
    """An order that a stream gives is drawn with the first batch; what the model draws is none of the loader's."""
    steps = pieces["drawn_batches"].heard.ranks[0].steps
    drawn = [set(step.batches[0].drawn) for step in steps]
    assert drawn[:6] == [set(), set(), {"torch"}, {"torch"}, set(), set()]
    assert all("torch" in streams for streams in drawn[6:])


def test_a_batch_may_be_an_object_that_holds_itself(pieces):
    heard = pieces["odd_batches"].heard
    assert heard.errors == []
    assert len({step.batches[0].digest for step in heard.ranks[0].steps}) == 3


def test_a_job_may_say_which_step_it_has_taken(pieces):
    assert pieces["counted"].heard.ranks[0].counters == [("ckptrun.probe.step", 7)]


@pytest.mark.parametrize(("kind", "code"), KILLS.items())
def test_a_fault_strikes_at_its_step(pieces, kind, code):
    assert pieces[kind].exit_code == code
    assert pieces[kind].heard.steps == 2
    assert (pieces[kind].folder / "struck.json").is_file()


def test_a_write_is_cut_at_its_share(pieces, tmp_path):
    whole = pieces["whole_save"].folder / "state.pt"
    size = whole.stat().st_size
    # The folder of a piece is part of the path in the job's folder.
    cut = fault("sigkill", "writing", 1, sizes={"cut/state.pt": size})
    piece = listen_to_pieces(tmp_path, {"cut": SAVE}, {"cut": cut})["cut"]
    assert piece.exit_code < 0
    assert (piece.folder / "state.pt").stat().st_size == size // 4


def test_a_write_to_a_file_whose_name_is_drawn_is_cut_at_its_share(pieces, tmp_path):
    size = (pieces["whole_save"].folder / "state.pt").stat().st_size
    drawn = SAVE.replace("'state.pt'", "open(__import__('uuid').uuid4().hex + '.part', 'wb')")
    cut = fault("sigkill", "writing", 1, sizes={"cut/other": size}, sizes_in_order={"0": [size]})
    piece = listen_to_pieces(tmp_path, {"cut": drawn}, {"cut": cut})["cut"]
    assert piece.exit_code < 0
    assert next(piece.folder.glob("*.part")).stat().st_size == size // 4
