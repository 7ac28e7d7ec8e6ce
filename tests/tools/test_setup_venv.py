"""tools/setup_venv.sh takes the Python and the torch that it is told to, or says why not.

The Python and the pip are scripts, of which pip writes down what it is called with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toys import REPOSITORY

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *sys.version.split*) echo {version} ;;
    *"import torch"*) exit {torch_is_missing} ;;
esac
"""
PIP = """#!/usr/bin/env bash
if [[ $1 == index ]]; then
    [[ {cpu_build} == here || ("$*" == *--index-url* && {cpu_build} == there) ]] && echo "torch (2.13.0+cpu)"
    exit 0
fi
echo "$*" >>pip.log
"""


class Folder:
    """A copy of the script beside a .venv that is no more than two programs."""

    def __init__(self, folder: Path, *, cpu_build: str = "here", torch: bool = False) -> None:
        self.folder = folder
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, folder)
        (folder / "tools").mkdir()
        shutil.copy(REPOSITORY / "tools/setup_venv.sh", folder / "tools")
        (folder / ".venv/bin").mkdir(parents=True)
        missing = int(not torch)
        self.write(".venv/bin/python", PYTHON.format(version="3.11.7", torch_is_missing=missing))
        self.write(".venv/bin/pip", PIP.format(cpu_build=cpu_build))
        self.write("python3.12", PYTHON.format(version="3.12.1", torch_is_missing=1))

    def write(self, name: str, program: str) -> None:
        (self.folder / name).write_text(program)
        (self.folder / name).chmod(0o755)

    def run(self, extra: str = "tools", **env: str) -> subprocess.CompletedProcess[str]:
        plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        words = [str(self.folder / "tools/setup_venv.sh"), extra]
        return subprocess.run(words, env=plain | env, capture_output=True, text=True, check=False)

    def installed(self) -> list[str]:
        log = self.folder / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


without_gpu = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="a build with CUDA is right here"
)
INSTALL = "install --quiet --no-compile"
FEATSTORE = f"{INSTALL} --editable .[tools]"


def test_another_python_than_that_of_the_venv_is_refused(tmp_path):
    folder = Folder(tmp_path)
    done = folder.run(PYTHON=str(tmp_path / "python3.12"))
    assert (done.returncode, folder.installed()) == (1, [])
    assert ".venv has Python 3.11.7" in done.stderr
    assert "python3.12 is 3.12.1: remove .venv" in done.stderr


def test_another_python_is_refused_too_if_all_is_up_to_date(tmp_path):
    folder = Folder(tmp_path, torch=True)
    assert folder.run().returncode == 0
    assert folder.run(PYTHON=str(tmp_path / "python3.12")).returncode == 1


def test_a_venv_that_is_up_to_date_is_left_alone(tmp_path):
    folder = Folder(tmp_path, torch=True)
    folder.run()
    done = folder.run(PYTHON=str(tmp_path / ".venv/bin/python"))
    assert (done.returncode, done.stderr, folder.installed()) == (0, "", [FEATSTORE])


def test_what_the_tests_need_is_all_that_the_tools_need(tmp_path):
    folder = Folder(tmp_path, torch=True)
    folder.run("test")
    assert folder.installed() == [FEATSTORE.replace("tools", "test")]
    folder.run("tools")
    assert len(folder.installed()) == 1
    folder.run("test")
    assert len(folder.installed()) == 1


@without_gpu
@pytest.mark.parametrize(
    ("cpu_build", "build"),
    [
        ("here", "torch==2.13.0+cpu"),
        ("there", f"--extra-index-url {CPU_INDEX} torch==2.13.0+cpu"),
        ("nowhere", "torch==2.13.0"),
    ],
)
def test_without_a_gpu_torch_comes_without_cuda_if_there_is_such_a_build(
    tmp_path, cpu_build, build
):
    folder = Folder(tmp_path, cpu_build=cpu_build)
    done = folder.run()
    assert folder.installed() == [f"{INSTALL} {build}", FEATSTORE]
    assert ("3 GB" in done.stderr) == (cpu_build == "nowhere")
    assert ("there is no NVIDIA driver" in done.stderr) == (cpu_build != "nowhere")


def test_a_build_of_torch_that_is_asked_for_is_installed_beside_one_that_is_there(tmp_path):
    folder = Folder(tmp_path, torch=True)
    folder.run()
    folder.run(TORCH="torch==2.9.1", TORCH_INDEX="https://example.org/cu126")
    url = "--extra-index-url https://example.org/cu126"
    assert folder.installed()[1:] == [f"{INSTALL} {url} torch==2.9.1", FEATSTORE]
