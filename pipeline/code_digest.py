"""Which of our code a stage runs, as one digest: its modules found by reading imports, never by importing.

Comments, formatting and docstrings do not count, so that tidying up leaves the store's artifacts valid.
"""

import ast
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import stages

PACKAGES = ("pipeline", "stages", "rewards", "data")
SOURCE_ROOT = Path(stages.__file__).resolve().parent.parent


@functools.cache
def stage_code_digest(stage: str, root: Path = SOURCE_ROOT) -> str:
    """SHA-256 over all modules that `stages.<stage>.stage` imports, directly or not, in functions too."""
    combined = hashlib.sha256()
    for module in sorted(import_closure(f"stages.{stage}.stage", root)):
        combined.update(f"{module}\0{_read(module, root).digest}\n".encode())
    return combined.hexdigest()


def import_closure(module: str, root: Path = SOURCE_ROOT) -> set[str]:
    """Names of our modules that importing `module`, or calling its functions, can load."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or _source_file(name, root) is None:
            continue
        found.add(name)
        waiting.extend(_read(name, root).imports)
    return found


def _source_file(module: str, root: Path) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


class _Module(NamedTuple):
    """What one file says: the names that it imports, as they are candidates, and the digest of the rest."""

    imports: tuple[str, ...]
    digest: str


@functools.cache
def _read(module: str, root: Path) -> _Module:
    """Read once, however many stages import it: a parse takes milliseconds, and there are a hundred modules."""
    path = _source_file(module, root)
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports += _candidates(node, package)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return _Module(tuple(imports), hashlib.sha256(ast.dump(tree).encode()).hexdigest())


def _candidates(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    """`from a import b` may mean the module `a.b` or the name `b` in `a`; both are given."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = package[: len(package) - node.level + 1] if node.level else []
    target = ".".join([*start, *([node.module] if node.module else [])])
    return [target, *(f"{target}.{alias.name}" for alias in node.names)]


def _is_text(node: ast.stmt) -> bool:
    """Whether the statement is a bare string: a docstring, or one under a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
