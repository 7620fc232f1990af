"""The measured tables of README.md and docs/, one function each.

A Markdown file names the function and its arguments in a marked region, which
`python -m benchmarks.report` fills.
"""

from benchmarks.results import markdown, read


def benchmark(name: str) -> str:
    """Everything that one benchmark measured, with its figure."""
    record = read(name)
    versions = ", ".join(
        f"{package} {version}"
        for package, version in record["versions"].items()
    )
    parts = [
        f"`python -m benchmarks.{name}`, {record['date']}, "
        f"{record['machine']}; {versions}.",
        f"![{name}: first column of each table](benchmark-{name}.png)",
    ]
    for title, rows in record["tables"].items():
        parts += [f"**{title}**", markdown(rows)]
    return "\n\n".join(parts)


def inference_summary() -> str:
    """Images per second at batch 1 and 8, with the speedup over timm."""
    tables = read("inference")["tables"]
    rows = {
        name: {
            f"{variant}, batch {batch_size}": speed(
                tables[f"CaiT-{variant} at 224, batch {batch_size}"][name]
            )
            for variant in ("XXS24", "S24")
            for batch_size in (1, 8)
        }
        for name in (
            "keras-cait, XLA",
            "OpenVINO",
            "ONNX Runtime",
            "KerasFormers, XLA",
            "timm eager",
        )
    }
    return markdown(rows)


def speed(row: dict[str, float]) -> str:
    """Images per second, and the speedup over timm in parentheses."""
    return f"{row['images/s']:.1f} ({row['timm eager = 1']:.2f})"
