"""The package as users get it: lists equal the tree, wheel and editable install work, ComfyUI can load any folder name."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import alignsr
from paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE_FOLDERS = ("core", "train", "nodes", "runner", "cli")
ROOT_FILES = ("__init__.py", "__main__.py")
DATA_FOLDERS = ("core/assets", "configs", "web", "workflows")
DATA_FILES = tuple(f"core/metrics/published-{paper}.json" for paper in ("aesop", "asasr", "dp2o-sr", "strsr"))
HEAVY = "diffusers transformers peft pyiqa torchvision comfy folder_paths spandrel timm accelerate skimage scipy matplotlib cv2"
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "outputs", "out", "runs"
)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run to the end; a failure shows everything the command said."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV_"))}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, without scripts that a user keeps in its root, in a folder whose name is no Python identifier."""
    target = tmp_path_factory.mktemp("copy") / "My-Align.SR"
    shutil.copytree(ROOT, target, ignore=NOT_SOURCE)
    for path in set(target.glob("*.py")) - {target / name for name in ROOT_FILES}:
        path.unlink()
    return target


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "My-Align.SR"
    shutil.copytree(copy, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(source), cwd=out)
    return zipfile.ZipFile(next(out.glob("alignsr-*.whl")))


def test_package_list_equals_the_tree() -> None:
    folders = {path.parent for name in CODE_FOLDERS for path in (ROOT / name).rglob("*.py") if "__pycache__" not in path.parts}
    without_init = [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without_init
    expected = {"alignsr"} | {".".join(("alignsr", *folder.relative_to(ROOT).parts)) for folder in folders}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == expected
    assert len(listed) == len(expected)


def test_requirements_are_the_dependencies_without_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line.strip() and not line.startswith("#")]
    dependencies = PROJECT["project"]["dependencies"]
    assert requirements == [text for text in dependencies if re.match(r"[\w.-]+", text)[0] not in ("torch", "torchvision")]


def test_the_cpu_constraints_pin_exactly_torch_and_torchvision() -> None:
    lines = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").split()
    assert [line.partition("==")[0] for line in lines] == ["torch", "torchvision"]
    assert all("==" in line for line in lines)


def test_set_up_scripts_use_the_constraints_and_ci_runs_the_test_script() -> None:
    assert "constraints-cpu.txt" in (ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    assert "scripts/test.sh" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for script in ("scripts/quickstart.sh", "scripts/test.sh"):
        assert f"bash {script}" in readme
        assert 'setup.sh"' in (ROOT / script).read_text(encoding="utf-8")
        assert os.access(ROOT / script, os.X_OK)


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"-m pip"*) echo "$*" >> "$CALLS" ;;
  *) echo "Installed" >&2 ;;
esac
case "$*" in
  *--index-url*) echo "WARNING: slow" >&2; echo "ERROR: no $ANSWER" >&2; exit "$ANSWER" ;;
esac
"""


def set_up(folder: Path, *, answer: int = 0, gpu: bool = False, system: str = "Linux", **more: str) -> tuple[list[str], str]:
    """`alignsr_setup dev` with an interpreter that only notes what it is asked: the calls of pip, and what the user reads."""
    commands = {"venv/bin/python": FAKE_PYTHON, "path/uname": f"#!/bin/sh\necho {system}\n"}
    commands["path/nvidia-smi"] = "#!/bin/sh\necho 'GPU 0: of a test'\n" if gpu else "#!/bin/sh\nexit 9\n"
    for name, text in commands.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("", encoding="utf-8")
    environment = {"ALIGNSR_VENV": str(folder / "venv"), "CALLS": str(calls), "ANSWER": str(answer), **more}
    environment["PATH"] = f"{folder / 'path'}{os.pathsep}{os.environ['PATH']}"
    script = f". '{ROOT / 'scripts/setup.sh'}' && alignsr_setup dev 2>&1"
    said = run("bash", "-c", script, cwd=folder, **environment)
    return calls.read_text(encoding="utf-8").splitlines(), said


CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
class TestSetUpScript:
    """Where the setup scripts take torch from."""

    def test_without_a_gpu_the_cpu_build_comes_first_and_a_second_call_does_nothing(self, tmp_path: Path) -> None:
        calls, said = set_up(tmp_path)
        assert len(calls) == 2
        assert f"--no-deps --retries 1 --timeout 15 --index-url {CPU_INDEX} -r {ROOT / 'constraints-cpu.txt'}" in calls[0]
        assert f"-c {ROOT / 'constraints-cpu.txt'} -e {ROOT}[dev]" in calls[1]
        assert "--index-url" not in calls[1]
        assert "several GB" not in said
        assert set_up(tmp_path) == ([], "")

    def test_an_index_out_of_reach_is_told_and_does_not_stop_the_set_up(self, tmp_path: Path) -> None:
        calls, said = set_up(tmp_path, answer=1)
        assert len(calls) == 2
        assert "Got none there (ERROR: no 1)." in said
        assert "CUDA build" in said
        assert "several GB" in said

    def test_with_a_gpu_nothing_is_held_back(self, tmp_path: Path) -> None:
        calls, _ = set_up(tmp_path, gpu=True)
        assert len(calls) == 1
        assert "constraints" not in calls[0]

    def test_elsewhere_the_package_index_has_cpu_builds(self, tmp_path: Path) -> None:
        calls, _ = set_up(tmp_path, system="Darwin")
        assert len(calls) == 1
        assert "constraints-cpu.txt" in calls[0]

    def test_the_index_can_be_chosen_or_left_out(self, tmp_path: Path) -> None:
        assert (
            "--index-url https://example.org/simple "
            in set_up(tmp_path / "a", ALIGNSR_TORCH_INDEX="https://example.org/simple")[0][0]
        )
        assert len(set_up(tmp_path / "b", ALIGNSR_TORCH_INDEX="")[0]) == 1


def test_readme_and_scripts_name_the_same_source_of_cpu_builds() -> None:
    for name in ("README.md", "scripts/setup.sh", ".github/workflows/ci.yml"):
        assert CPU_INDEX in (ROOT / name).read_text(encoding="utf-8")


def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example
    Image.new("RGB", (13, 9), (200, 40, 90)).save(tmp_path / "photo.jpg")
    run(sys.executable, "-c", example[1], cwd=tmp_path)
    with Image.open(tmp_path / "photo_x4.png") as result:
        assert result.size == (52, 36)


def test_wheel_holds_the_package_and_its_data_and_nothing_else(copy: Path, wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = {path for folder in CODE_FOLDERS for path in (copy / folder).rglob("*.py")} | {copy / name for name in ROOT_FILES}
    data = {path for folder in DATA_FOLDERS for path in (copy / folder).rglob("*") if path.is_file()}
    data |= {copy / name for name in DATA_FILES}
    expected = {f"alignsr/{path.relative_to(copy).as_posix()}" for path in code | data}
    assert names == expected


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = next(name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "alignsr = alignsr.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


@pytest.mark.parametrize("editable", [False, True], ids=["install", "editable"])
def test_pip_install_gives_the_import_and_the_command(copy: Path, tmp_path: Path, editable: bool) -> None:
    source = tmp_path / "My-Align.SR"
    shutil.copytree(copy, source)
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=tmp_path)
    folder = "Scripts" if os.name == "nt" else "bin"
    python = environment / folder / "python"
    # The dependencies come from the environment that runs the tests; its own alignsr comes after the new one on the path.
    library = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(library) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet", "--disable-pip-version-check")
    target = ("-e", str(source)) if editable else (str(source),)
    run(sys.executable, "-m", "pip", "--python", str(python), "install", *options, *target, cwd=tmp_path)

    where = run(str(python), "-c", "import alignsr.core; print(alignsr.core.__file__)", cwd=tmp_path).strip()
    assert Path(where) == (source if editable else Path(library) / "alignsr") / "core" / "__init__.py"
    help_text = run(str(environment / folder / "alignsr"), "--help", cwd=tmp_path)
    assert "upscale" in help_text
    assert "upscale" in run(str(python), "-m", "alignsr", "--help", cwd=tmp_path)


LOAD_LIKE_COMFYUI = f"""
import importlib.util, json, pathlib, sys
import torch
folder = pathlib.Path(sys.argv[1])
name = str(folder).replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert hasattr(module, "NODE_CLASS_MAPPINGS") and not hasattr(module, "comfy_entrypoint")
heavy = [item for item in "{HEAVY}".split() if item in sys.modules]
print(json.dumps(dict(ids=sorted(module.NODE_CLASS_MAPPINGS), names=sorted(module.NODE_DISPLAY_NAME_MAPPINGS), heavy=heavy,
    web=(folder / module.WEB_DIRECTORY).is_dir(), own="alignsr" in sys.modules,
    outside=[c.__name__ for c in module.NODE_CLASS_MAPPINGS.values() if not c.__module__.startswith(name)])))
"""


def test_comfyui_style_loading_from_a_folder_with_an_odd_name(copy: Path, tmp_path: Path) -> None:
    loaded = json.loads(run(sys.executable, "-c", LOAD_LIKE_COMFYUI, str(copy), cwd=tmp_path).splitlines()[-1])
    assert loaded["ids"]
    assert loaded["ids"] == loaded["names"]
    assert all(identifier.startswith("AlignSR") for identifier in loaded["ids"])
    assert loaded == {**loaded, "heavy": [], "web": True, "own": False, "outside": []}


def test_pytest_runs_in_a_folder_with_an_odd_name(copy: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")
    out = run(sys.executable, "-m", "pytest", *options, "tests/test_layers.py", "-k", "the_walk", cwd=copy)
    assert "1 passed" in out


def test_importing_every_module_of_the_pack_pulls_in_nothing_heavy(tmp_path: Path) -> None:
    script = f"""
import importlib, pkgutil, sys
import torch
names = []
for layer in ("core", "train", "nodes", "runner", "cli"):
    package = importlib.import_module("alignsr." + layer)
    for item in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(item.name)
        names.append(item.name)
print(len(names), [item for item in "{HEAVY}".split() if item in sys.modules])
"""
    count, _, heavy = run(sys.executable, "-c", script, cwd=tmp_path).strip().partition(" ")
    assert int(count) > 10
    assert heavy == "[]"


def test_the_root_shim_answers_only_for_what_comfyui_asks() -> None:
    assert alignsr.WEB_DIRECTORY == "./web"
    assert set(alignsr.NODE_CLASS_MAPPINGS) == set(alignsr.NODE_DISPLAY_NAME_MAPPINGS)
    with pytest.raises(AttributeError, match="comfy_entrypoint"):
        _ = alignsr.comfy_entrypoint
