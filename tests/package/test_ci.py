"""The files for CI systems: their lines are typed into a clean shell, as those systems would."""

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptrun.config.compose import config_from

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "examples/jobs/plain.py"


def typed(script: str, where: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Type ``script`` as a CI system does, without a network: what a package needs is that of this environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        # This is how pip wants to be told to build without an environment of its own.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=where, env={**kept, **offline, **variables}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_the_action_takes_what_it_says_and_no_input_is_put_into_a_script() -> None:
    """Text that a workflow hands over reaches the shell in a variable."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(action["inputs"]) == {"arguments", "folder", "artifact"}
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == (step.get("shell") == "bash")


@pytest.mark.slow
@pytest.mark.crash
def test_the_lines_of_the_action_prove_a_job_and_leave_its_report(tmp_path: Path, checkout: Path) -> None:
    action: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    install, prove, keep = action["runs"]["steps"]
    work, runner = tmp_path / "my work", tmp_path / "runner"
    work.mkdir()
    runner.mkdir()
    where = {"RUNNER_TEMP": str(runner), "GITHUB_ACTION_PATH": str(checkout)}
    installed = typed(install["run"], work, **where)
    assert installed.returncode == 0, installed.stderr
    page = tmp_path / "page.md"
    arguments = f"prove fault=sigkill run.dir='outputs/my proof' -- python {JOB} --output_dir {{run}}"
    done = typed(prove["run"], work, ARGUMENTS=arguments, GITHUB_STEP_SUMMARY=str(page), **where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EQUAL" in done.stdout
    assert "equal" in page.read_text()
    folder = action["inputs"]["folder"]["default"]
    patterns = [line.strip().removeprefix("${{ inputs.folder }}/") for line in keep["with"]["path"].splitlines()]
    found = {path.name for pattern in patterns for path in (work / folder).glob(pattern)}
    assert {"report.html", "verdict.json"} <= found
    wrong = typed(prove["run"], work, ARGUMENTS="prove fault=sigkil -- python x.py", **where)
    assert wrong.returncode == 2
    assert "did you mean sigkill?" in wrong.stderr


def test_the_gitlab_template_has_the_lines_of_the_action() -> None:
    """Which are typed above: an environment of its own, an install, and the command line, in a variable."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    template = yaml.safe_load((ROOT / "examples/gitlab-ci.yml").read_text())[".ckptrun"]
    install, prove, _ = action["runs"]["steps"]
    lines = [*install["run"].splitlines(), *prove["run"].splitlines()]
    here = [
        line.replace('"$RUNNER_TEMP/ckptrun', '"ckptrun-environment')
        .replace('\\"\\$RUNNER_TEMP/ckptrun/bin/ckptrun\\"', "ckptrun-environment/bin/ckptrun")
        .replace('-c "$GITHUB_ACTION_PATH/constraints.txt" "$GITHUB_ACTION_PATH"', '"$CKPTRUN"')
        for line in lines
    ]
    assert [line.replace('"ckptrun-environment"', "ckptrun-environment") for line in here] == [
        line.replace("ckptrun-environment/bin/python", '"ckptrun-environment/bin/python"')
        for line in template["script"]
    ]
    config_from([text for text in template["variables"]["ARGUMENTS"].split()])
    assert template["artifacts"]["when"] == "always"
