"""Builds the site: the pages of docs/, the README and a card per model.

python docs/site/build.py

A warning is an error. The site is `build/site/site`.
"""

import configparser
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.cost import multiply_adds
from benchmarks.results import read
from keras_cait import PRETRAINED, __version__
from keras_cait.models import VARIANTS
from keras_cait.pretrained import PretrainedWeights

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent


def build(output: Path) -> Path:
    """Builds the site.

    Args:
        output: folder for the sources and, in `output/site`, the site.

    Returns:
        The folder of the site.

    Raises:
        subprocess.CalledProcessError: a page has a warning.
    """
    shutil.rmtree(output, ignore_errors=True)
    pages = output / "docs"
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("site"))
    shutil.copy(DOCS / "site/style.css", pages)
    readme = (ROOT / "README.md").read_text()
    (pages / "index.md").write_text(start_page(readme))
    (pages / "models.md").write_text(models_page(readme))
    (pages / "models").mkdir()
    for row in PRETRAINED.values():
        (pages / "models" / f"{page_name(row)}.md").write_text(card(row))
    config = output / "config.yml"
    config.write_text(
        Template((DOCS / "site/config.yml").read_text()).substitute(
            root=ROOT,
            url=repository_url(),
            site_url=site_url(),
            version=__version__,
        )
    )
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    subprocess.run([*command, "--config-file", str(config)], check=True)
    return output / "site"


def repository_url() -> str:
    """Address of the repository, from setup.cfg."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    return metadata["metadata"]["url"]


def site_url() -> str:
    """Address of the site on GitHub Pages."""
    owner, name = repository_url().split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


def start_page(readme: str) -> str:
    """The README with its links to docs/ and to files of the repository."""
    # Badges are images of another host; a link does as well.
    readme = re.sub(r"\[!\[([^\]]*)\]\([^)]*\)\]", r"[\1]", readme)
    readme = readme.replace("](docs/", "](").replace('src="docs/', 'src="')

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        page = DOCS / target.partition("#")[0]
        if target.startswith(("http", "#")) or page.is_file():
            return match[0]
        return f"[{text}]({repository_url()}/blob/main/{target})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)]+)\)", link, readme)


def models_page(readme: str) -> str:
    """The README's section on models, with links to the cards."""
    section = re.search(r"## Models\n.*?(?=\n## )", readme, re.DOTALL)
    if section is None:
        raise ValueError("README.md has no section 'Models'.")
    text = section[0]
    for row in PRETRAINED.values():
        name = f"CaiT-{row.variant}"
        text = text.replace(
            f"| {name} | {row.image_size} |",
            f"| [{name}](models/{page_name(row)}.md) | {row.image_size} |",
        )
    return text[1:] + "\n\n" + chart(None) + "\n"


def page_name(row: PretrainedWeights) -> str:
    return f"{row.variant.lower()}-{row.image_size}"


def card(row: PretrainedWeights) -> str:
    """The page of one published model."""
    config, size = VARIANTS[row.variant], row.image_size
    facts = {
        "Top-1": f"{row.measured_top_1:.1f} %",
        "Top-5": f"{row.measured_top_5:.1f} %",
        "Parameters": f"{row.parameters / 1e6:.1f} M",
        "Size in float32": f"{4 * row.parameters / 1e6:.0f} MB",
        "GMACs": f"{multiply_adds(row.variant, size) / 1e9:.1f}",
        **latency(row),
    }
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value in facts.items()
    )
    published = row.published_top_1
    return Template((DOCS / "site/card.md").read_text()).substitute(
        variant=row.variant,
        size=size,
        facts=f'<dl class="facts">{tiles}</dl>',
        chart=chart(row),
        crop_ratio=row.crop_ratio,
        depth=config.depth,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        tuned=f", then fine-tuned at {size} pixels" if size > 224 else "",
        published=f"The paper reports {published:.1f} % top-1."
        if published
        else "The authors give no figure for this size.",
        repository=row.repository,
        license=row.license,
    )


def latency(row: PretrainedWeights) -> dict[str, str]:
    """Measured milliseconds for one image, by what they were measured on."""
    record = read("latency")
    found = record["tables"]["One image in float32"]
    milliseconds = found[f"CaiT-{row.variant} at {row.image_size}"]["ms"]
    return {f"Latency, {record['machine']}": f"{milliseconds:,.0f} ms"}


def chart(this: PretrainedWeights | None) -> str:
    """Top-1 over multiply-adds of all models as inline SVG.

    Args:
        this: the model to highlight.
    """
    width, height, left, bottom = 560, 300, 40, 40

    def x(gmacs: float) -> float:
        low, high = math.log(2), math.log(500)
        return left + (math.log(gmacs) - low) / (high - low) * (width - left)

    def y(top_1: float) -> float:
        return (88 - top_1) / (88 - 77) * (height - bottom)

    parts = []
    for top_1 in range(78, 88, 2):
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{y(top_1):.1f}" '
            f'y2="{y(top_1):.1f}"/><text x="0" y="{y(top_1) + 4:.1f}">'
            f"{top_1} %</text>"
        )
    for gmacs in (2, 5, 10, 20, 50, 100, 200):
        parts.append(
            f'<text x="{x(gmacs):.1f}" y="{height - 22}">{gmacs}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 4}">GMACs per image '
        "(ImageNet-1k top-1 above)</text>"
    )
    for row in PRETRAINED.values():
        gmacs = multiply_adds(row.variant, row.image_size) / 1e9
        cx, cy = x(gmacs), y(row.measured_top_1)
        marked = ' class="this"' if row == this else ""
        parts.append(
            f'<g{marked}><circle cx="{cx:.1f}" cy="{cy:.1f}" r="5"/>'
            f'<text x="{cx + 8:.1f}" y="{cy + 14:.1f}">{row.variant} at '
            f"{row.image_size}</text></g>"
        )
    label = "Top-1 accuracy and multiply-adds of all models"
    if this:
        label += f"; {this.variant} at {this.image_size} highlighted"
    return (
        f'<svg class="chart" viewBox="0 0 {width + 60} {height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


if __name__ == "__main__":
    print(build(ROOT / "build/site"))
