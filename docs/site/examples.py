"""Examples of docstrings as code blocks, for the API page."""

import re

import griffe


class Examples(griffe.Extension):
    """Fences what stands under `Example:`, up to the next empty line."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:\n((?:.+\n?)+)",
                r"**Example**\n\n```pycon\n\1\n```\n",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
