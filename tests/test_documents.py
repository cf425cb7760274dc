"""The documents keep their promises: code in them runs, the commands are there, every module is in the reference."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import deepzero
from deepzero.cli.entry_point import COMMANDS
from deepzero.measure import CASES
from deepzero.reproduce import EXPERIMENTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LOCAL_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_code(page: Path) -> bool:
    return PYTHON_BLOCK.search(page.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("page", list(filter(with_code, PAGES)), ids=page_name)
def test_python_blocks_run_in_order(page: Path) -> None:
    source = "\n".join(PYTHON_BLOCK.findall(page.read_text(encoding="utf-8")))
    exec(compile(source, str(page), "exec"), {"__name__": "__main__"})


def test_readme_prints_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    main, tests = [line for line in lines if line.startswith("pip install")]
    assert main == "pip install '.[all]' && deepzero train"
    assert "pytest" in tests


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page_name)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = LOCAL_LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_package_is_in_the_api_reference() -> None:
    documented = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = [m.name for m in pkgutil.iter_modules(deepzero.__path__) if not m.name.startswith("_")]
    internal = {
        *(
            "arrays",
            "cli",
            "environment",
            "evaluator_choice",
            "extras",
            "files",
            "folder_lock",
            "orphans",
            "own",
            "process_memory",
            "randomness",
            "stopwatch",
        ),
        *("text", "validation"),
    }
    missing = [name for name in modules if name not in internal and f"automodule:: deepzero.{name}\n" not in documented]
    assert missing == []


def test_every_command_is_on_the_page_of_commands() -> None:
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}`" not in page] == []


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert deepzero.__version__ == project == cited[1]


def test_every_promise_has_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 30
    assert [n for n in named if f"def {n[1]}(" not in (ROOT / n[0]).read_text(encoding="utf-8")] == []


def test_the_trials_of_promises_are_those_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torture

    page = torture.PAGE.read_text(encoding="utf-8")
    assert torture.MARKED.search(page) is not None
    assert page == torture.filled(page), "run python benchmarks/torture.py --page"


def test_figures_are_drawn_of_the_records_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reproduction_page

    monkeypatch.setattr(reproduction_page, "FIGURES", tmp_path)
    reproduction_page.draw_figures(["figA5"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figA5-1.svg", "figA5-2.svg"]


def test_the_page_of_reproductions_says_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reproduction_page

    page = reproduction_page.PAGE.read_text(encoding="utf-8")
    assert page == reproduction_page.filled(page), "run python benchmarks/reproduction_page.py"
    recorded = {path.stem.removeprefix("reproduce-") for path in reproduction_page.RECORDS.glob("reproduce-*.json")}
    assert recorded <= {found[2] for found in reproduction_page.MARKED.finditer(page)}
    assert {experiment.name for experiment in EXPERIMENTS.values()} <= {
        found[2] for found in reproduction_page.MARKED.finditer(page)
    }


def test_the_pages_of_speed_say_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed_page

    pages = [page.read_text(encoding="utf-8") for page in speed_page.PAGES]
    assert pages == [speed_page.filled(page) for page in pages], "run python benchmarks/speed_page.py"
    marked = {found[2] for page in pages for found in speed_page.MARKED.finditer(page)}
    assert marked == set(speed_page.SECTIONS)
    assert {case["case"] for content in speed_page.speeds() for case in content["cases"]} <= set(CASES)
