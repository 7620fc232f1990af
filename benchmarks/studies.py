"""Studies: top-1 of each training of the paper's studies, on the digits."""

import os
from pathlib import Path

from benchmarks.command import Output, benchmark_app, run
from benchmarks.results import Rows, write

app = benchmark_app("studies", __doc__)


@app.default
def main(*, runs: Path = Path("studies"), output: Output = None) -> None:
    """Runs all studies; resumes them where they were interrupted.

    Args:
        runs: Folder of the studies, as in `python -m training.studies`.
    """
    from training.studies import run_study
    from training.study.cells import SCALES, STUDIES

    tables: dict[str, Rows] = {}
    for study in STUDIES:
        results = run_study(
            study,
            SCALES["digits"],
            runs / f"{study}-digits",
            processes=os.cpu_count() or 1,
        )
        tables[study] = {
            f"{result['row']}, {result['column']}, {result['seed']}": {
                key: result[key] for key in ("row", "column", "seed", "top1")
            }
            for result in results
        }
    write(tables, output)


if __name__ == "__main__":
    run(app)
