"""The direction of imports: core <- train <- nodes <- runner <- cli, relative inside the package, heavy ones inside functions."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = ("core", "train", "nodes", "runner", "cli")
MAY_IMPORT = {
    "core": {"core"},
    "train": {"core", "train"},
    "nodes": {"core", "train", "nodes"},
    "runner": {"core", "train", "nodes", "runner"},
    "cli": {"core", "train", "nodes", "runner", "cli"},
    "__main__": {"cli"},
    "__init__": {"nodes"},
}
HEAVY = set(PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "execution", "server"}
NEED_TORCHVISION = {"torchvision", "spandrel", "pyiqa", "timm", "open_clip", "peft", "transformers", "diffusers"}
DISTRIBUTION_OF = {"PIL": "pillow", "skimage": "scikit-image", "open_clip": "open_clip_torch", "pkg_resources": "setuptools"}
COMES_WITH = {  # import name -> the declared dependency that always installs it
    "click": "typer",
    "cv2": "pyiqa",
    "huggingface_hub": "diffusers",
    "psutil": "accelerate",
    "scipy": "scikit-image",
    "timm": "pyiqa",
    "tqdm": "diffusers",
}


@dataclass(frozen=True)
class Import:
    """One imported module: dotted parts (inside the package where `relative`) and whether it runs when the file is imported."""

    parts: tuple[str, ...]
    relative: bool
    at_import: bool
    line: int


def sources(root: Path = ROOT) -> list[Path]:
    """Every Python file that is part of the package, relative to the root; a script that a user keeps in the root is none."""
    files = [path.relative_to(root) for layer in LAYERS for path in sorted((root / layer).rglob("*.py"))]
    return files + [Path(f"{name}.py") for name in MAY_IMPORT if (root / f"{name}.py").is_file()]


def layer_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def walk(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below `node`, each with whether it runs at import time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            yield from walk(ast.Module(child.body, []), False)
            yield from walk(ast.Module(child.orelse, []), at_import)
        else:
            yield from walk(child, at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def resolve(path: Path, statement: ast.Import | ast.ImportFrom, at_import: bool) -> Iterator[Import]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield Import(tuple(alias.name.split(".")), False, at_import, statement.lineno)
        return
    module = tuple(statement.module.split(".")) if statement.module else ()
    if not statement.level:
        yield Import(module, False, at_import, statement.lineno)
        return
    package = path.parent.parts
    base = package[: len(package) - (statement.level - 1)] if statement.level > 1 else package
    outside = statement.level - 1 > len(package)
    for alias in statement.names:
        parts = ("..",) if outside else (*base, *module, alias.name)
        yield Import(parts, True, at_import, statement.lineno)


def imports(path: Path) -> list[Import]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))
    return [found for statement, at_import in walk(tree) for found in resolve(path, statement, at_import)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_imports_follow_the_layers(path: Path) -> None:
    wrong = [
        f"{path}:{found.line} imports {'.'.join(found.parts)}"
        for found in imports(path)
        if found.relative and found.parts[0] not in MAY_IMPORT[layer_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_the_package_never_imports_itself_by_name(path: Path) -> None:
    own = {"alignsr", *LAYERS}
    wrong = [f"{path}:{found.line}" for found in imports(path) if not found.relative and found.parts[0] in own]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    wrong = [
        f"{path}:{found.line} imports {found.parts[0]} at import time"
        for found in imports(path)
        if found.at_import and not found.relative and found.parts[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_comfyui_is_touched_by_the_host_only(path: Path) -> None:
    found = [found for found in imports(path) if not found.relative and found.parts[0] in COMFYUI]
    if path.as_posix() == "nodes/host.py":
        assert not [item for item in found if item.at_import]
    else:
        assert not found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_what_needs_torchvision_is_imported_through_compat(path: Path) -> None:
    """A direct import is fine for its types, in a file that asks compat to make torchvision importable first."""
    found = imports(path)
    direct = [item for item in found if not item.relative and item.parts[0] in NEED_TORCHVISION]
    typing_only = all(item.at_import is False for item in direct)
    uses_compat = any(item.relative and "compat" in item.parts for item in found)
    assert path.as_posix() == "core/compat.py" or not direct or (typing_only and uses_compat), [item.line for item in direct]


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = PYPROJECT["project"]
    specifications = project["dependencies"] + project["optional-dependencies"]["train"]
    declared = {re.match(r"[\w.-]+", text)[0].lower() for text in specifications}
    missing: set[str] = set()
    for path in sources():
        for found in imports(path):
            name = found.parts[0]
            if found.relative or name in sys.stdlib_module_names or name in COMFYUI:
                continue
            if DISTRIBUTION_OF.get(name, name).lower() not in declared and COMES_WITH.get(name) not in declared:
                missing.add(f"{name} ({path}:{found.line})")
    assert not missing, sorted(missing)


def test_scripts_of_users_in_the_root_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    for name in ("__init__.py", "my_example.py", "core/images.py"):
        (tmp_path / name).write_text("import alignsr.core\n", encoding="utf-8")
    assert sources(tmp_path) == [Path("core/images.py"), Path("__init__.py")]
    assert {"__init__.py", "__main__.py"} <= {path.as_posix() for path in sources()}


def test_the_walk_sees_what_it_should() -> None:
    """The checker itself: function bodies and TYPE_CHECKING blocks do not count as import time, class bodies and `try` do."""
    code = """
import a
if TYPE_CHECKING:
    import b
def f():
    import c
class K:
    import d
try:
    import e
except ImportError:
    from ..core import g
"""
    found = {
        (".".join(item.parts), item.at_import)
        for statement, at_import in walk(ast.parse(code))
        for item in resolve(Path("train/recipes/x.py"), statement, at_import)
    }
    assert found == {("a", True), ("b", False), ("c", False), ("d", True), ("e", True), ("train.core.g", True)}
