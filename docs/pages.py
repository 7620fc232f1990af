"""The pages of the site that are made from what stands elsewhere.

`mkdocs` calls `on_files`: the start page is the README, and every published
checkpoint gets a card from its row of `CHECKPOINTS`.
"""

import re
from pathlib import Path
from string import Template

from mkdocs.structure.files import File

from keras_cait.models import VARIANTS
from keras_cait.weights import CHECKPOINTS

DOCS = Path(__file__).parent


def on_files(files, config):
    readme = (DOCS.parent / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=start_page(readme)))
    table = re.search(r"## Models\n.*?(?=\n## )", readme, re.DOTALL)[0]
    cards = {
        f"models/{row.variant.lower()}-{row.image_size}.md": card(row)
        for row in CHECKPOINTS.values()
    }
    names = [
        f"- [{text.splitlines()[0][2:]}]({page})"
        for page, text in cards.items()
    ]
    models = "\n".join([f"# {table[3:]}", "## Model cards\n", *names])
    for page, text in {**cards, "models.md": models}.items():
        files.append(File.generated(config, page, content=text))
    return files


def start_page(readme):
    """The README; what it names outside of the site is named without a link."""
    readme = readme.replace("](docs/", "](").replace('src="docs/', 'src="')

    def link(match):
        text, target = match.groups()
        page = DOCS / target.partition("#")[0]
        inside = target.startswith("http") or page.is_file()
        return match[0] if inside else text

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, readme)


def card(row):
    """The page of one checkpoint."""
    config, size = VARIANTS[row.variant], row.image_size
    return Template((DOCS / "card.txt").read_text()).substitute(
        variant=row.variant,
        size=size,
        parameters=f"{row.parameters:,}",
        depth=config.depth,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        tuned=f", then fine-tuned at {size}" if size > 224 else "",
        published=f"{row.published_top_1} %"
        if row.published_top_1
        else "not given",
        top_1=row.measured_top_1,
        top_5=row.measured_top_5,
        repository=row.repository,
        file=row.file,
        licence=row.license,
    )
