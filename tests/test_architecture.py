"""What the linters cannot say about the shape of the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jobsync_celery"
MOST_LINES = 400
TEXT = {".py", ".md", ".cfg", ".toml", ".sql", ".yaml", ".yml", ".txt", ".sh", ".pml", ".ini", ".mako", ".html", ""}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
CODE = {".py", ".sql", ".sh", ".pml"}

# Written so that this file does not find itself.
MACHINE_PATHS = re.compile("|".join(rf"(?<![\w.])/{name}/" for name in ("work", "root", "home/[a-z]+", "Users/[a-z]+")))
REGISTRY_HOSTS = re.compile("|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "deb" + r"\.debian"]))
REASONS_WANTED = re.compile(r"noqa(?!: [A-Z])|type: ignore(?!\[)")


def files() -> list[Path]:
    """The project's own files: known to git or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    folders = ("jobsync_celery", "tests", "examples", "docs", "benchmarks", "models", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in [*found, *ROOT.glob("*.*")] if "__pycache__" not in path.parts and path.is_file()]


def texts(suffixes: set[str]) -> Iterator[tuple[str, str]]:
    for path in files():
        if path.suffix in suffixes:
            yield str(path.relative_to(ROOT)), path.read_text(errors="replace")


def places(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts(TEXT)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def modules() -> dict[str, ast.Module]:
    """The package's own modules; migrations are called by number and left out."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if "versions" not in path.parts
    }


def classes(trees: Iterable[ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def promised_by_a_base(method: str, owner: ast.ClassDef, known: dict[str, ast.ClassDef]) -> bool:
    """Whether a base class says what the method promises: one of ours in its docstring, a library's in its manual."""
    for base in owner.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name in ("object", "ABC", "Protocol", "Generic", "NamedTuple", "Enum"):
            continue
        if name not in known or promised_by_a_base(method, known[name], known):
            return True
        methods = [node for node in known[name].body if isinstance(node, FUNCTION) and node.name == method]
        if any(map(ast.get_docstring, methods)):
            return True
    return False


def silent_names(name: str, parent: ast.Module | ast.ClassDef, known: dict[str, ast.ClassDef]) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, (ast.ClassDef, *FUNCTION)) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        repeats = any(word.endswith((".setter", "overload")) for word in decorators)
        inherits = isinstance(parent, ast.ClassDef) and promised_by_a_base(node.name, parent, known)
        if ast.get_docstring(node) is None and not repeats and not inherits:
            yield f"{name}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from silent_names(f"{name}.{node.name}", node, known)


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {name: lines for name, text in texts(CODE) if (lines := text.count("\n")) > MOST_LINES}
    assert not long


def test_imports_go_down_only() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_and_its_core_brings_in_neither_celery_nor_sql() -> None:
    program = (
        "import sys, pkgutil, importlib, jobsync_celery, jobsync_celery.core as core\n"
        "for module in pkgutil.iter_modules(core.__path__, core.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'celery', 'kombu', 'sqlalchemy', 'psycopg2', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_but_what_is_named_after_redis_needs_its_client_library() -> None:
    program = (
        "import sys, pkgutil, importlib, jobsync_celery\n"
        "sys.modules['redis'] = None\n"
        "others = {'redis', 'demo', 'servers', 'main', 'migrations'}\n"
        "for module in pkgutil.walk_packages(jobsync_celery.__path__, 'jobsync_celery.'):\n"
        "    if not set(module.name.replace('_', '.').split('.')) & others:\n"
        "        importlib.import_module(module.name)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_celery_s_own_commands_load_nothing_of_ours_but_the_names_of_commands() -> None:
    program = (
        "import sys, celery.bin.celery\n"
        "assert 'jobsync' in celery.bin.celery.celery.commands\n"
        "print(sorted(name for name in sys.modules if name.startswith('jobsync_celery.')))\n"
        "print(sorted({'sqlalchemy', 'psycopg2', 'alembic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    names = ["jobsync_celery.cli", "jobsync_celery.cli.lazy", "jobsync_celery.cli.main"]
    assert done.stdout.splitlines() == [str(names), "[]"]


def test_every_public_name_says_what_it_promises() -> None:
    trees = modules()
    known = classes(trees.values())
    silent = [name for name, tree in trees.items() if tree.body and ast.get_docstring(tree) is None]
    silent.extend(found for name, tree in trees.items() for found in silent_names(name, tree, known))
    assert not silent


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATHS, REGISTRY_HOSTS, REASONS_WANTED], ids=["machine-paths", "registry-hosts", "bare-ignores"]
)
def test_no_file_names_what_belongs_to_one_machine_or_hides_a_warning(pattern: re.Pattern[str]) -> None:
    assert not [place for place in places(pattern) if not place.startswith("tests/test_architecture.py")]


def test_only_the_agreed_folders_exist() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in files() if len(path.relative_to(ROOT).parts) > 1}
    assert top <= {".ci", "benchmarks", "docs", "examples", "jobsync_celery", "models", "tests"}
