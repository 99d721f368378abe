"""The notebooks run from top to bottom, hold no outputs, and say what they need."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the folder: what one notebook makes is there for the next."""
    target = tmp_path_factory.mktemp("notebooks") / "notebooks"
    shutil.copytree(FOLDER, target, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    return target


@pytest.fixture(autouse=True)
def kernel_settings(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    """Let a kernel draw inline, and write nothing outside the copy."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(copy / "home"))


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute all cells in a kernel of this environment, with the folder as its directory."""
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_top_to_bottom(path: Path, copy: Path):
    notebook = nbformat.read(path, 4)
    run(notebook, copy)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    drawn = sum("image/png" in o.get("data", {}) for o in outputs)
    assert drawn >= {"01": 2, "02": 2, "03": 2, "04": 0}[path.stem[:2]]
    noise = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not any("Warning" in text for text in noise), noise


@pytest.mark.slow
@pytest.mark.parametrize("package", ["matplotlib", "ttspico"])
def test_without_its_extra_it_says_what_to_install(package: str, copy: Path):
    notebook = nbformat.read(NOTEBOOKS[0], 4)
    hidden = f"import sys; sys.modules['{package}'] = None"
    notebook.cells = [nbformat.v4.new_code_cell(hidden), *notebook.cells]
    with pytest.raises(CellExecutionError) as caught:
        run(notebook, copy)
    assert f"the package '{package}' is not installed" in str(caught.value)
    assert "pip install '.[notebooks]'" in str(caught.value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_holds_no_outputs_and_checks_its_extras_first(path: Path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "check_extras()" in code[0].source
    assert path.stat().st_size < 20_000
