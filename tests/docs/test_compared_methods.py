"""The table of methods in the docs is the one that was recorded."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_methods_is_the_recorded_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(
        "recorded_compare", ROOT / "benchmarks" / "tlpo_compare.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sys.modules.pop("machine", None)
    report = json.loads((ROOT / "benchmarks/results/tlpo_compare.json").read_text())
    page = (ROOT / "docs/how-to/tlpo.md").read_text(encoding="utf-8")
    assert script.markdown(report) in page
    assert len(report["difference_to_base"]) == 14
    for name, found in report["sweep"].items():
        tried = found["validation gain of each candidate"]
        assert not tried or tried[found["chosen"]] == max(tried.values()), name
