"""`python -m export web`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def web(
    *,
    model: Annotated[
        Path | None,
        Parameter(
            help=".tflite file of python -m export litert. Omit it to serve an "
            "existing site."
        ),
    ] = None,
    output: Path,
    examples: Annotated[
        tuple[Path, ...],
        Parameter(consume_multiple=True, show_default=False),
    ] = (),
    serve: bool = False,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
) -> None:
    """Make a static site that classifies images in the browser.

    Args:
        output: Folder of the site. With --model, it must not exist.
        examples: Images, or folders of images, to offer on the page; up to 12
            are used.
        serve: Serve the site on this computer until Ctrl-C.
        port: Port for --serve.
    """
    from contextlib import nullcontext, suppress

    from export.web.server import site_server
    from export.web.site import SUFFIXES, make_site
    from keras_cait.files import image_files, new_output

    if examples and not model:
        raise ValueError(
            "--examples is for a new site, which needs --model. Add --model, "
            "or omit --examples."
        )
    with site_server(output, port) if serve else nullcontext() as server:
        if model:
            files = image_files(examples, SUFFIXES) if examples else []
            # Evenly spaced, because neighbors are often of the same class.
            count = min(12, len(files))
            chosen = [files[i * len(files) // count] for i in range(count)]
            with new_output(output) as unfinished:
                make_site(model, chosen, unfinished)
            print(f"Wrote {output}")
        elif not (serve and (output / "index.html").exists()):
            raise ValueError(
                f"There is no site in {str(output)!r}. Make one with --model "
                "FILE."
            )
        if server:
            print(f"Serving http://localhost:{server.server_port} until Ctrl-C")
            with suppress(KeyboardInterrupt):
                server.serve_forever()
