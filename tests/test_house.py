"""The rules of the house, as tests: sizes, directions, quick start, pins, papers."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("aalnet", "cluster", "deploy", "tuner")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ROOMS = [path for path in MODULES if path.name == "__init__.py" and path.parent.parent != ROOT]
TOOLS = sorted(path for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

FILE_LINES = 300
FUNCTION_LINES = 60
LOOP_LINES = 130
STEP_LINES = 45
PUBLIC_NAMES = 8
HELP_SECONDS = 1.0


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[tuple[str, int]]:
    """Every function of a file, nested ones too, with its length in lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in nodes]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def without_docstring(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Public functions, methods and classes that do not say what they are."""
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from without_docstring(node.body, f"{prefix}{node.name}.")


@cache
def imports() -> dict[str, set[str]]:
    """Our modules that each of ours imports, wherever in its text."""
    paths = [p for top in (*PACKAGES, "tests", "benchmarks") for p in (ROOT / top).rglob("*.py")]
    names = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
             for path in paths}  # fmt: skip
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        named = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {each if each in names else node.module for each in whole}
        graph[name] = (named & names.keys()) - {name}
    return graph


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    requirements = [Requirement(line) for line in listed]
    return [item for item in requirements if item.name != PROJECT["name"]]


# Sizes


@pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=name_of)
def test_file_and_function_sizes(path: Path) -> None:
    assert lines_of(path) <= FILE_LINES, "split this file"
    too_long = {name: lines for name, lines in functions(path) if lines > FUNCTION_LINES}
    assert not too_long, "split these functions"


def test_loop_fits_its_budget(repo_root: Path) -> None:
    assert lines_of(repo_root / "cluster" / "training" / "loop.py") <= LOOP_LINES


def test_train_step_fits_one_screen(repo_root: Path) -> None:
    assert dict(functions(repo_root / "aalnet" / "step.py"))["train_step"] <= STEP_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    assert list(without_docstring(ast.parse(path.read_text(encoding="utf-8")).body)) == []


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_every_room_says_in_one_line_what_lives_there(path: Path) -> None:
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r'"""[A-Z`].+\."""', line)


# Packages and imports


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names one


def test_tests_import_no_benchmarks() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items() if module.startswith("tests")
        for other in others if other.startswith("benchmarks")
        and not other.startswith("benchmarks.data_sets")  # which measures nothing and is tested
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_inside_this_repository(package: str, repo_root: Path) -> None:
    # From elsewhere and isolated, so that the answer is the installed one.
    code = f"import importlib.util as u; print(u.find_spec({package!r}).origin)"
    found = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).resolve() == repo_root / package / "__init__.py"


def test_installed_packages_are_all_listed(repo_root: Path) -> None:
    folders = {path.parent for path in MODULES}
    dotted = {folder.relative_to(repo_root).as_posix().replace("/", ".") for folder in folders}
    assert dotted == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_cluster_init_is_empty(repo_root: Path) -> None:
    assert (repo_root / "cluster" / "__init__.py").read_text(encoding="utf-8").strip() == ""


def test_public_names_of_aalnet() -> None:
    aalnet = importlib.import_module("aalnet")
    assert len(aalnet.__all__) <= PUBLIC_NAMES
    assert [name for name in aalnet.__all__ if not hasattr(aalnet, name)] == []


@pytest.mark.parametrize(
    "module",
    [
        "aalnet",
        "cluster.training.loop",
        "cluster.runs.run",
        "cluster.storage.location",
        "deploy.commands.serve",
        "deploy.endpoint.server",
    ],
)
def test_imports_without_ray(module: str) -> None:
    done = run_python("-c", f"import sys; sys.modules['ray'] = None; import {module}")
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        started_at_s = time.perf_counter()
        done = run_python("-m", "aalnet", "--help")
        seconds.append(time.perf_counter() - started_at_s)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < HELP_SECONDS


def test_help_imports_neither_torch_nor_ray() -> None:
    done = run_python("-X", "importtime", "-m", "aalnet", "--help")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "aalnet" in imported, "importtime's format has changed"
    assert imported.isdisjoint({"torch", "ray"})


# Pins


def test_nothing_makes_every_import_of_ray_long() -> None:
    """Ray takes jsonschema, which takes this where it is there: 1.9 s instead of 0.5 a process."""
    assert importlib.util.find_spec("rfc3987_syntax") is None


def test_torch_stays_below_2_14() -> None:
    (torch,) = (item for item in direct_dependencies() if item.name == "torch")
    assert torch.specifier.contains("2.13.0")
    assert not torch.specifier.contains("2.14.0", prereleases=True)
    assert not torch.specifier.contains("2.14.0.dev20260101", prereleases=True)


def test_constraints_pin_every_direct_dependency(repo_root: Path) -> None:
    text = (repo_root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==(\d+!)?[\w.]+", line)] == []
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    wrong = [
        str(item)
        for item in direct_dependencies()
        if not item.specifier.contains(pins.get(canonicalize_name(item.name), "0"))
    ]
    assert wrong == []


# Papers


def test_readme_names_every_make_target(repo_root: Path) -> None:
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE)
    assert {"setup", "demo", "test", "test-slow", "check", "bench"} <= set(targets)
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    missing = [name for name in targets if not re.search(rf"\bmake {name}(?![\w-])", readme)]
    assert [name for name in missing if name != "help"] == []


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_loads_and_its_schema_takes_it(path: Path) -> None:
    from aalnet.settings import load_settings
    from aalnet.yaml_io import read_mapping
    from tuner.settings import load_campaign

    loaders = {"settings.schema.json": load_settings, "campaign.schema.json": load_campaign}
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    schema = first.removeprefix("# yaml-language-server: $schema=")
    loaders[schema](path)
    jsonschema.validate(read_mapping(path), json.loads((path.parent / schema).read_text("utf-8")))


def test_no_path_of_a_workplace_in_any_file(repo_root: Path) -> None:
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={repo_root}", "ls-files", "-coz", "--exclude-standard"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    )
    # Written so that this file does not name them either.
    pattern = re.compile(rb"(?<![\w.~-])/(?:work|opt/(?:pypi|wheels)|root/\.pyenv)/")
    files = [repo_root / name for name in listed.stdout.split("\0") if name]
    found = [
        name_of(path) for path in files if path.is_file() and pattern.search(path.read_bytes())
    ]
    assert found == []


def test_schema_and_settings_page_are_what_the_code_says(repo_root: Path) -> None:
    from aalnet.settings import settings_schema
    from cluster.commands.schema import markdown_of
    from tuner.schema import campaign_schema

    schema = (repo_root / "configs" / "settings.schema.json").read_text(encoding="utf-8")
    assert json.loads(schema) == settings_schema(), "aalnet schema > configs/settings.schema.json"
    campaign = (repo_root / "configs" / "campaign.schema.json").read_text(encoding="utf-8")
    now = "aalnet campaigns schema > configs/campaign.schema.json"
    assert json.loads(campaign) == json.loads(json.dumps(campaign_schema())), now
    page = (repo_root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page.strip() == markdown_of(settings_schema()), "aalnet schema --markdown"
