"""Builds the documentation site, strictly, with the report of the demo on it.

python -m tests.site        # build/site/html/index.html, to open or to publish
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
"""To a file, in a page."""
FIRST = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def build(site: Path) -> Path:
    """Build the site in a new folder, from a copy of the pages that lie as they do here, so that
    their links lead where they do here; the folder to publish."""
    pages = site / "pages"
    for file in linked_files():
        target = pages / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    shutil.copytree(ROOT / "docs" / "theme", pages / "docs" / "theme")
    shutil.copy(ROOT / "docs" / "zensical.toml", site)
    table, output = ROOT / "examples" / "demo" / "questions.csv", site / "out.csv"
    run(site, "mmrag_batch", "predict", table, output, "--quiet")
    run(site, "mmrag_batch", "report", output, "--out", pages / "docs" / "demo-report.html")
    run(site, "zensical", "build", "--strict")
    return site / "html"


def linked_files() -> list[Path]:
    """The pages, and every file of the repository that they link to, be it a page as well."""
    files = [*(ROOT / name for name in FIRST), *sorted((ROOT / "docs").glob("*.md"))]
    for file in files:  # which grows
        if file.suffix == ".md":
            links = LINK.findall(file.read_text(encoding="utf-8"))
            targets = {(file.parent / link).resolve() for link in links}
            files += sorted(one for one in targets if one.is_file() and one not in files)
    return files


def run(site: Path, module: str, *words: object) -> None:
    """A command of ours or another's, in the folder of the site."""
    subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=site, check=True)


if __name__ == "__main__":
    place = ROOT / "build" / "site"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    build(place)
