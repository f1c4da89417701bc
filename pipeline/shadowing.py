"""Whether our packages are the ones that Python finds: `data` and `stages` are names that others use too."""

import importlib.metadata
import importlib.util
from pathlib import Path

PACKAGES = ("pipeline", "stages", "rewards", "data", "configs")
_OURS = "rlhf-pipeline"
_ROOT = Path(__file__).resolve().parent.parent


def shadowed_packages(root: Path = _ROOT) -> list[str]:
    """One message for each of our packages that another one hides or overwrites."""
    problems = []
    installed = root.name in ("site-packages", "dist-packages")
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if spec is not None and not found and spec.origin is not None:
            found = [Path(spec.origin).resolve()]  # a module `data.py` instead of a package
        others = _owners(name) if installed or found != [root / name] else []
        if found == [root / name] and not others:
            continue
        where = ", ".join(map(str, found)) or "nowhere"
        way_out = (
            f"uninstall it: pip uninstall {' '.join(others)}"
            if others
            else "rename or remove it, or start the command in another folder"
        )
        problems.append(f"{where}: the package {name!r} there hides ours in {root / name}; {way_out}")
    return problems


def _owners(package: str) -> list[str]:
    """Other distributions that install a package of this name."""
    owners = importlib.metadata.packages_distributions().get(package, [])
    return sorted({owner for owner in owners if owner.lower().replace("_", "-") != _OURS})
