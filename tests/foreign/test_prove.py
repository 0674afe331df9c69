"""Proofs of a script that is not ours: sound it is equal, and each planted bug is found and blamed on whose it is."""

import json
import sys
from pathlib import Path

import pytest

from ckptrun.__main__ import main
from ckptrun.evidence.verdict import Verdict, read_verdict
from tests.support.job_python import JOB_PYTHON

PLAIN = (Path(__file__).resolve().parents[2] / "examples" / "jobs" / "plain.py").read_text()
LOSS = "            loss = nn.functional.cross_entropy(model(inputs), targets)\n"
RESTORE = "        model.load_state_dict(state["
IMPORT = "import argparse\n"


def ckptrun(folder: Path, script: str, *overrides: str, monkeypatch) -> int:
    """Prove ``script`` as the command line does; return the exit code."""
    file = folder / "train.py"
    file.write_text(script)
    command = ["--", JOB_PYTHON, str(file), "--output_dir", "{run}", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["ckptrun", "prove", f"run.dir={folder}/proof", *overrides, *command])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def changed(*changes: tuple[str, str]) -> str:
    """The script with pieces replaced, each of which it has."""
    script = PLAIN
    for before, after in changes:
        assert before in script
        script = script.replace(before, after)
    return script


def verdict_of(folder: Path) -> Verdict:
    return read_verdict(folder / "proof")


def test_a_sound_script_is_equal_and_all_is_told(tmp_path, monkeypatch, capsys):
    assert ckptrun(tmp_path, PLAIN, monkeypatch=monkeypatch) == 0
    verdict = verdict_of(tmp_path)
    assert {check.name: str(check.status) for check in verdict.checks} == dict.fromkeys(
        ["faults", "observed", "lost_work", "loaded_equals_saved", "trajectory", "second_resume"], "equal"
    )
    content = json.loads((tmp_path / "proof" / "verdict.json").read_text())
    assert [start["step"] for start in content["starts"]] == [0, 4, 8]
    assert content["fired"] == [f"sigkill of rank 0 at after_optimizer of step {step}" for step in (6, 10)]
    assert "start 3         resumed at step 8; complete" in capsys.readouterr().out
    assert content["exit_code"] == 0
    assert [leg["name"] for leg in content["legs"]] == ["reference", "run", "run", "run"]
    report = (tmp_path / "proof" / "report.html").read_text()
    assert "Equal: killed and resumed" in report
    assert report.count('class="cross"') == 2
    assert report.count('class="resume"') == 2


OPTIMIZER = ('        optimizer.load_state_dict(state["optimizer"])\n', "")
PLANTED = {
    "no schedule": ([('        schedule.load_state_dict(state["schedule"])\n', "")], "trajectory", "schedule"),
    "no random streams": ([('        torch.set_rng_state(state["rng"])\n', "")], "trajectory", "rng"),
    "data begin again": ([("            if index < batches:\n                continue\n", "")], "trajectory", "data"),
    "cast weights": (
        [(f'{RESTORE}"model"])', f'{RESTORE}"model"])\n        model.bfloat16().float()')],
        "loaded_equals_saved",
        "model",
    ),
    "no running statistics": (
        [(f'{RESTORE}"model"])', f'{RESTORE}"model"])\n        model[1].reset_running_stats()')],
        "trajectory",
        "buffers",
    ),
    "an older checkpoint": (
        [("found[-1] if found", "found[max(0, len(found) - 2)] if found")],
        "lost_work",
        "progress",
    ),
    "no checkpoint": ([("    if checkpoint is not None:", "    if False:")], "lost_work", "progress"),
    "a counter that is not saved": (
        [
            (IMPORT, "import itertools\nimport argparse\n\nCALLS = itertools.count(1)\n"),
            (LOSS, LOSS.replace("model(inputs)", "model(inputs) * (1 + 1e-3 * next(CALLS))")),
        ],
        "trajectory",
        None,
    ),
    "an epoch too few": (
        [
            (
                '        torch.set_rng_state(state["rng"])\n',
                '        torch.set_rng_state(state["rng"])\n        options.epochs -= 1\n',
            )
        ],
        "resume",
        "progress",
    ),
    "a resume that fails": (
        [("        state = torch.load(", "        raise KeyError('gone')\n        state = torch.load(")],
        "resume",
        None,
    ),
}


def test_moments_that_do_not_come_back_are_found(tmp_path, monkeypatch, capsys):
    assert ckptrun(tmp_path, changed(OPTIMIZER), monkeypatch=monkeypatch) == 3
    verdict = verdict_of(tmp_path)
    assert verdict.blame == "optimizer"
    assert verdict.reason.startswith("loaded_equals_saved: resumed at step 4, rank 0: 'optimizer.0.weight.")
    assert "DIFFERENT (blame: optimizer)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_and_blamed(bug, tmp_path, monkeypatch):
    changes, check, blame = PLANTED[bug]
    assert ckptrun(tmp_path, changed(*changes), monkeypatch=monkeypatch) == 3
    verdict = verdict_of(tmp_path)
    assert (verdict.reason.partition(":")[0], verdict.blame) == (check, blame), verdict.reason


def line_of(script: str, code: str) -> str:
    """Where a piece of code of ``train.py`` stands, as it is told."""
    return f"train.py:{next(n for n, line in enumerate(script.splitlines(), 1) if code in line)} main"


@pytest.mark.slow
def test_a_script_that_does_not_repeat_itself_is_not_verified(tmp_path, monkeypatch):
    noise = "            inputs = inputs * (1 + 1e-6 * (os.getpid() % 1000))\n"
    script = changed((IMPORT, "import os\nimport argparse\n"), (LOSS, noise + LOSS))
    assert ckptrun(tmp_path, script, monkeypatch=monkeypatch) == 4
    reason = verdict_of(tmp_path).reason
    assert "not deterministic: two runs that nothing happened to differ at step 1" in reason
    # The batch is changed before the first module is called: it is seen in what that is given.
    assert "operation 2 of the step, aten.addmm.default at " in reason
    assert f"{line_of(script, 'model(inputs)')}, is given other tensors or numbers" in reason


@pytest.mark.slow
def test_the_operation_that_goes_by_something_hidden_is_told(tmp_path, monkeypatch):
    scale = "            scale = 1 + 1e-3 * next(CALLS)\n"
    script = changed(
        (IMPORT, "import itertools\nimport argparse\n\nCALLS = itertools.count(1)\n"),
        (LOSS, scale + LOSS + "            loss = loss * scale\n"),
    )
    assert ckptrun(tmp_path, script, monkeypatch=monkeypatch) == 3
    verdict = verdict_of(tmp_path)
    assert verdict.blame is None
    where = line_of(script, "loss = loss * scale")
    assert "the step goes by something else, which did not come back; operation " in verdict.reason
    told = (
        f"aten.mul.Tensor at {tmp_path}/{where}, is given other tensors or numbers, which no operation before it made"
    )
    assert told in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("point", ["at_request", "writing", "before_commit", "after_commit", "loading"])
def test_a_save_that_is_renamed_at_its_end_survives_a_kill_in_it(point, tmp_path, monkeypatch):
    assert ckptrun(tmp_path, PLAIN, f"fault.point={point}", monkeypatch=monkeypatch) == 0


@pytest.mark.slow
def test_a_save_in_place_does_not(tmp_path, monkeypatch):
    in_place = changed(
        ('f"checkpoint-{step}.tmp")\n', 'f"checkpoint-{step}.pt")\n'),
        (
            '                (options.output_dir / f"checkpoint-{step}.tmp").rename(options.output_dir / f"checkpoint-{step}.pt")\n',
            "",
        ),
    )
    assert ckptrun(tmp_path, in_place, "fault.point=writing", monkeypatch=monkeypatch) == 3
    assert verdict_of(tmp_path).reason.startswith("resume: start 2 could not go on")


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("print('reading'); raise SystemExit('no such dataset')", 1, "no such dataset"),
        (
            "import collections; collections.nothing",
            1,
            "AttributeError: module 'collections' has no attribute 'nothing'",
        ),
        ("import nothing.at.all", 1, f"It was run by {JOB_PYTHON} (Python 3"),
        ("input('go on? ')", 1, "has no terminal, and nothing to read from its input"),
        ("print('done')", 2, "no process of it has used torch where ckptrun could hear it"),
        ("import torch; print('done')", 2, "has taken no optimizer step"),
    ],
)
def test_a_command_that_trains_nothing_is_told_so(script, code, says, tmp_path, monkeypatch, capsys):
    assert ckptrun(tmp_path, script, monkeypatch=monkeypatch) == code
    assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("if step % options.save_every == 0", "if False"), "has taken 16 steps and saved nothing"),
        (("type=Path, required=True", 'type=lambda text: Path(text).parent / "elsewhere"'), "which is not in {run}"),
        (("torch.save(state, ", "torch.save(model.state_dict(), "), "in which there is nothing of an optimizer"),
    ],
)
def test_a_job_with_nothing_to_resume_from_is_told_so(change, says, tmp_path, monkeypatch, capsys):
    assert ckptrun(tmp_path, changed(change), monkeypatch=monkeypatch) == 2
    assert says in capsys.readouterr().err


TINY = """
import os, sys, torch
torch.manual_seed(0)
m = torch.nn.Linear(4, 1); o = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9); s = 0
f = os.path.join(sys.argv[2], "last.pt")
if os.path.exists(f):
    c = torch.load(f); m.load_state_dict(c["m"]); o.load_state_dict(c["optim"]); s = c["s"]
while s < 8:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(s))
    o.zero_grad(); (m(x) - x.sum(1, keepdim=True)).square().mean().backward(); o.step(); s += 1
    if s % 2 == 0:
        torch.save({"m": m.state_dict(), "optim": o.state_dict(), "s": s}, f + ".tmp"); os.replace(f + ".tmp", f)
"""


OWN_FORMAT = """
import os, sys, torch
import numpy as np
torch.manual_seed(0)
m = torch.nn.Linear(4, 1); o = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9); s = 0
found = sorted(os.listdir(sys.argv[2]))
found = [name for name in found if name.startswith("state-")]
if found:
    c = list(np.fromfile(os.path.join(sys.argv[2], found[-1]), "f4")); s = int(c.pop(0))
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.tensor([c.pop(0) for _ in range(p.numel())]).view_as(p))
            o.state[p]["momentum_buffer"] = torch.tensor([c.pop(0) for _ in range(p.numel())]).view_as(p)
while s < 8:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(s))
    o.zero_grad(); (m(x) - x.sum(1, keepdim=True)).square().mean().backward(); o.step(); s += 1
    if s % 2 == 0:
        parts = [t.detach().numpy().ravel() for p in m.parameters() for t in (p, o.state[p]["momentum_buffer"])]
        draft = os.path.join(sys.argv[2], "draft.bin")
        with open(draft, "wb") as file: file.write(np.concatenate([[s], *parts]).astype("f4").tobytes())
        os.replace(draft, os.path.join(sys.argv[2], f"state-{s}.bin"))
"""


@pytest.mark.slow
def test_a_format_of_the_jobs_own_is_proved_once_it_is_said_which_files_it_is(tmp_path, monkeypatch, capsys):
    assert ckptrun(tmp_path, OWN_FORMAT, monkeypatch=monkeypatch) == 2
    assert "say which files they are: job.checkpoints=checkpoint-*." in capsys.readouterr().err
    assert ckptrun(tmp_path, OWN_FORMAT, "job.checkpoints=state-*", monkeypatch=monkeypatch) == 0
    loaded = next(check for check in verdict_of(tmp_path).checks if check.name == "lost_work")
    assert loaded.covered == {"starts": 2}
    lost = OWN_FORMAT.replace("found[-1])", "found[0])")
    assert ckptrun(tmp_path, lost, "job.checkpoints=state-*", monkeypatch=monkeypatch) == 3
    assert verdict_of(tmp_path).reason.startswith("lost_work: start 3 went on from step 2, although the checkpoint")


TURNS = (
    (
        "o = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)",
        "o, o2 = (torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in m.parameters())",
    ),
    ('o.load_state_dict(c["optim"])', 'o.load_state_dict(c["optim"]); o2.load_state_dict(c["optim2"])'),
    ("o.zero_grad();", "m.zero_grad();"),
    ("o.step()", "(o2 if s % 2 else o).step()"),
    ('"optim": o.state_dict()', '"optim": o.state_dict(), "optim2": o2.state_dict()'),
    ("s % 2 == 0", "s % 3 == 0"),
)
AVERAGE = (
    ("s = 0\n", "s = 0\nema = {k: v.clone() for k, v in m.state_dict().items()}\n"),
    ('s = c["s"]', 's = c["s"]; ema = c["ema"]'),
    ("s += 1\n", "s += 1; ema = {k: v.lerp(m.state_dict()[k], 0.1) for k, v in ema.items()}\n"),
    ('"s": s}', '"s": s, "ema": ema, "made": torch.rand(1, generator=G)}'),
    ("torch.manual_seed(0)", "torch.manual_seed(0); G = torch.Generator(); G.seed()"),
)
WITHOUT = ('ema = c["ema"]', "ema = {k: v.clone() for k, v in m.state_dict().items()}")
# A file whose name is drawn, and that is known by its number.
DRAWN = (
    ("import os,", "import tempfile, os,"),
    ("torch.save({", "d, t = tempfile.mkstemp(dir=sys.argv[2]); w = os.fdopen(d, 'wb'); torch.save({"),
    ('f + ".tmp"); os.replace(f + ".tmp", f)', "w); w.close(); os.replace(t, f)"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "overrides", "blame"),
    [
        pytest.param(TURNS, [], None, id="optimizers_take_turns"),
        pytest.param([*TURNS, ('; o2.load_state_dict(c["optim2"])', "")], [], "optimizer", id="one_of_them_is_lost"),
        pytest.param(AVERAGE, [], None, id="average_in_a_dict"),
        pytest.param([*AVERAGE, WITHOUT], [], "ema", id="average_is_lost"),
        pytest.param(DRAWN, ["fault.point=writing"], None, id="drawn_names"),
    ],
)
def test_an_unusual_job_is_judged_by_what_it_does(changes, overrides, blame, tmp_path, monkeypatch):
    script = TINY
    for before, after in changes:
        assert before in script
        script = script.replace(before, after)
    assert ckptrun(tmp_path, script, *overrides, monkeypatch=monkeypatch) == (3 if blame else 0)
    assert verdict_of(tmp_path).blame == blame


@pytest.mark.slow
def test_a_job_that_its_fault_never_strikes_is_started_once(tmp_path, monkeypatch):
    by_hand = "l = (m(x) - x.sum(1, keepdim=True)).square().mean(); ps = list(m.parameters())\n    for p, p.grad in zip(ps, torch.autograd.grad(l, ps)): pass\n    o.step()"
    script = TINY.replace("(m(x) - x.sum(1, keepdim=True)).square().mean().backward(); o.step()", by_hand)
    assert ckptrun(tmp_path, script, "fault.point=after_forward", monkeypatch=monkeypatch) == 4
    assert verdict_of(tmp_path).reason.startswith("faults: ")
    assert not (tmp_path / "proof" / "logs" / "start_00001.log").exists()


def prove_piped(script: str, folder: Path, *, monkeypatch) -> int:
    """Prove ``python train.py | cat``, which ends with 0 whatever becomes of python; return the exit code."""
    (folder / "train.py").write_text(script)
    piped = f"{JOB_PYTHON} {folder}/train.py --out $0 | cat"
    monkeypatch.setattr(sys, "argv", ["ckptrun", "prove", f"run.dir={folder}/proof", "--", "sh", "-c", piped, "{run}"])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_a_resume_that_raises_in_a_pipe_is_told_in_its_words(tmp_path, monkeypatch):
    script = TINY.replace("    c = torch.load(f);", "    c = torch.load(f); c.pop('gone');")
    assert prove_piped(script, tmp_path, monkeypatch=monkeypatch) == 3
    verdict = verdict_of(tmp_path)
    assert verdict.reason.startswith("resume: start 2 could not go on: ended with exit code 0: KeyError: 'gone'")
    assert verdict.blame is None


@pytest.mark.slow
def test_what_a_pipe_makes_of_a_kill_is_no_end_of_its_own(tmp_path, monkeypatch, capsys):
    assert prove_piped(TINY, tmp_path, monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert told.count("sigkill of rank 0 at after_optimizer") >= 2
    assert "saved and ended" not in " ".join(told.split())


@pytest.mark.slow
def test_a_sweep_proves_a_command_with_each_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TINY)
    command = ["--", JOB_PYTHON, "train.py", "--out", "{run}"]
    monkeypatch.setattr(sys, "argv", ["ckptrun", "prove", "-m", "fault=sigkill,exception", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    summary = next((tmp_path / "outputs").rglob("summary.json"))
    assert [cell["verdict"] for cell in json.loads(summary.read_text())["cells"]] == ["equal", "equal"]
