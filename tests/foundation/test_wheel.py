"""What a user gets from the wheel: one name, one script, all the data, and no second copy."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("critic", "nsq", "tlpo", "generator", "cli")


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--quiet", "--out-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel alone; other packages come from this one by path."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    run(
        "uv",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        home / "bin/python",
        *built.glob("*.whl"),
    )
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def expected_files() -> set[str]:
    """The tracked files of the package, under the names they have once installed."""
    names = run("git", "ls-files", "src/ft2", *PACKAGES).splitlines()
    return {
        name.removeprefix("src/") if name.startswith("src/") else f"ft2/{name}"
        for name in names
        if not (ROOT / name).is_symlink()
    }


def test_the_wheel_holds_the_package_once_and_nothing_else(built: Path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert len(names) == len(set(names))
        assert expected_files() <= set(names)
        assert not [name for name in names if not name.startswith("ft2/") or ".pyc" in name]
        total = sum(wheel.getinfo(name).file_size for name in names if "/weights/" in name)
    assert total <= 25_000_000


def test_the_sdist_holds_no_link_and_no_second_copy(built: Path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        members = sdist.getmembers()
    assert not [m.name for m in members if m.issym() or m.islnk()]
    inside = {m.name.partition("/")[2] for m in members}
    assert not [
        name for name in inside if name.startswith(tuple(f"src/ft2/{p}/" for p in PACKAGES))
    ]
    assert {"pyproject.toml", "README.md", "LICENSE", "critic/__init__.py"} <= inside


def test_site_packages_gets_one_name(installed: Path):
    site = next((installed / "lib").glob("python*/site-packages"))
    found = {p.name for p in site.iterdir()} - {"others.pth", "_virtualenv.py", "_virtualenv.pth"}
    assert {name for name in found if not name.endswith(".dist-info")} == {"ft2"}
    assert len(found) == 2


def test_the_script_works_and_the_root_names_do_not_exist(installed: Path, tmp_path: Path):
    assert run(installed / "bin/ft2", "--help", cwd=tmp_path).startswith("Usage: ft2")
    assert "nano/" in run(installed / "bin/ft2", "config", "list", cwd=tmp_path)
    python = installed / "bin/python"
    assert "No module named" in run(python, "-c", "import critic", cwd=tmp_path, code=1)
    where = run(python, "-c", "import ft2.critic; print(ft2.critic.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_root_folder_refuses_its_short_name(package: str):
    out = run(sys.executable, "-c", f"import {package}", cwd=ROOT, code=1)
    assert "ImportError" in out
    assert f"ft2.{package}" in out
