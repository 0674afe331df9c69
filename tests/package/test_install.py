"""A checkout, an editable install and a wheel are three different packages: each finds its choices and runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_list_of_packages_is_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    # The probe is data to this package: its own is found from another path, in another interpreter.
    files = [file for file in (ROOT / "ckptrun").rglob("__init__.py") if "site" not in file.parts]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert sorted(listed) == sorted(found | {"ckptrun.conf"})


class Environment:
    """A virtual environment that has the dependencies of this one, and no ckptrun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        # A line that names a folder reads no .pth files in it: the editable install of this checkout is not found.
        self.site_packages = next(folder.glob("lib/python*/site-packages"))
        (self.site_packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])

    def call(self, *command: str, cwd: Path) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        # As after its `activate`: what is started from there finds this environment's Python too.
        env |= {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def install(self, *what: str) -> None:
        pip = (
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "install",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
        )
        self.call("python", *pip, *what, cwd=self.folder)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def built(hook: str, source: Path, into: Path) -> Path:
    """Call a hook of the build backend, as pip does, but with what is installed here."""
    into.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(into)], cwd=source, capture_output=True, check=True, timeout=300)
    (file,) = into.iterdir()
    return file


def choices_found(environment: Environment, cwd: Path, *, package: Path) -> None:
    where = "import ckptrun, ckptrun.config.choices as c; print(ckptrun.__file__); print(len(list(c.CONF_DIR.rglob('*.yaml'))))"
    file, count = environment.call("python", "-c", where, cwd=cwd).splitlines()
    assert Path(file).parent.parent == package
    assert int(count) == len(list((ROOT / "conf").rglob("*.yaml")))
    assert "kind: fsdp_tp" in environment.call(
        "python", "-m", "ckptrun", "parallelism=fsdp_tp", "--cfg", "job", cwd=cwd
    )


@pytest.mark.slow
def test_a_wheel_made_of_the_source_archive_proves_a_run_in_a_fresh_environment(
    environment, checkout, tmp_path
) -> None:
    archive = built("build_sdist", checkout, tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = built("build_wheel", source, tmp_path / "wheel")
    environment.install(str(wheel))
    # Nothing of the source is left to be found by chance.
    shutil.rmtree(tmp_path / "unpacked")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    choices_found(environment, elsewhere, package=environment.site_packages)
    assert "EQUAL" in environment.call("ckptrun", "experiment=smoke", cwd=elsewhere)
    assert (elsewhere / "outputs/smoke/experiment=smoke/verdict.json").is_file()
    job = ROOT / "examples/jobs/gan.py"
    assert "EQUAL" in environment.call(
        "ckptrun", "prove", "--", "python", str(job), "--output_dir", "{run}", cwd=elsewhere
    )


@pytest.mark.slow
def test_an_editable_install_finds_the_choices_from_any_folder(environment, checkout, tmp_path) -> None:
    environment.install("--editable", str(checkout))
    choices_found(environment, tmp_path, package=checkout)
    assert "kind: none" in environment.call("ckptrun", "--cfg", "job", cwd=tmp_path)


@pytest.mark.slow
def test_a_checkout_runs_without_an_install(environment, checkout) -> None:
    choices_found(environment, checkout, package=checkout)
