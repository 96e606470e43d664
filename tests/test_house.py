"""The rules of the house that no type checker knows: layers, sizes, docstrings, what the wheel holds."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {
    "cli": {"nas", "predictors", "supernets", "kernels", "studies"},
    "nas": {"predictors", "supernets", "kernels", "studies"},
    "predictors": {"supernets", "kernels", "studies"},
    "supernets": {"kernels", "studies"},
    "kernels": set[str](),
    "studies": set[str](),
}
HEAVY = {"torch", "transformers", "sklearn"}
TORCH_FREE = ("cli", "studies", "supernets/moe_layout.py", "supernets/space.py")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_DEPENDENCIES = 400, 60, 15

FILES = sorted(path for folder in BELOW for path in (ROOT / folder).rglob("*.py"))
EVERYWHERE = FILES + sorted((ROOT / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names of the modules that import statements load."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            module = node.module or ""
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def at_import_time(path: Path) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not function bodies, not `if TYPE_CHECKING`."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        yield node
        is_lazy = isinstance(node, Function) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        pending += [] if is_lazy else list(ast.iter_child_nodes(node))


def imported_modules(path: Path) -> set[str]:
    return {name for name in imported(ast.walk(tree(path))) if name in MODULES and name != module_name(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    upwards = [
        name
        for name in imported(ast.walk(tree(path)))
        if name.split(".")[0] in {*BELOW, "tests"} - BELOW[layer] - {layer}
    ]
    assert not upwards


def test_no_module_cycles() -> None:
    TopologicalSorter({name: imported_modules(path) for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).startswith(TORCH_FREE)], ids=name_of)
def test_torch_free_at_module_level(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(at_import_time(path))} & HEAVY


def run_python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line_loads_nothing_heavy() -> None:
    heavy = sorted(HEAVY | {"sqlalchemy", "numpy"})
    assert run_python(f"import sys, cli.main; print([m for m in {heavy} if m in sys.modules])") == "[]\n"


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = {
        node.name: lines
        for node in ast.walk(tree(path))
        if isinstance(node, Function) and (lines := lines_without_docstring(node)) > MAX_FUNCTION_LINES
    }
    assert not long


def lines_without_docstring(function: Function) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented and first.end_lineno else 0
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - docstring


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring; overridden methods inherit theirs."""
    for child in node.body:
        if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        inherits = isinstance(node, ast.ClassDef) and any("override" in ast.unparse(d) for d in child.decorator_list)
        if ast.get_docstring(child) is None and not inherits:
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "the module has no docstring"
    assert not list(undocumented(tree(path)))


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=name_of)
def test_package_markers(folder: Path) -> None:
    """`kernels` is a namespace package, every other folder a regular one whose marker holds a docstring only."""
    marker = folder / "__init__.py"
    assert marker.exists() == (folder.relative_to(ROOT).parts[0] != "kernels")
    assert not marker.exists() or len(tree(marker).body) == 1


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def project() -> dict[str, object]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(content, dict)
    return content


def test_version_hides_from_transformers() -> None:
    """transformers reads the version of whichever distribution provides `kernels`, and acts on 0.17 and later."""
    version = tuple(int(part) for part in str(project()["version"]).split("."))
    assert version < (0, 17) or version >= (1, 0)
    assert f"## {project()['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_few_direct_dependencies() -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert len(dependencies) <= MAX_DEPENDENCIES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy so that nothing appears in the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*BELOW, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    done = subprocess.run([*command, str(target), str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(target.glob("supernas-*.whl"))


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert {name.split("/")[0] for name in names} == {*BELOW, metadata}
    assert names >= {name_of(path) for path in FILES} | {"kernels/compiled.json"}
    assert "kernels/__init__.py" not in names


def test_transformers_imports_beside_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Our `kernels` next to transformers' probe for the package of that name, from a wheel and outside the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {os.fspath(tmp_path / 'site')!r})\n"
        "from transformers import BertConfig, BertModel\n"
        "import kernels.op_spec\n"
        "print(kernels.op_spec.__file__)"
    )
    assert run_python(code, cwd=tmp_path).strip() == str(tmp_path / "site" / "kernels" / "op_spec.py")
