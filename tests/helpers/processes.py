"""Training programs as processes, one for each worker."""

import csv
import json
import os
import socket
import subprocess
import sys

from tests.helpers.runs import read_state


class Processes:
    """Starts workers, waits for all of them, and leaves none."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, strategy, runs, workers=1, start=None, timeout=60):
        """Exit statuses and output of each worker that is started.

        Args:
            strategy: str.
            runs: dict of fields by the name of the run's folder.
            workers: int. Number of workers of the cluster.
            start: indices of those that are started; `None` starts all.
            timeout: float. Time-out of the strategy in seconds.
        """
        runs = [
            {"output": str(self.folder / name), **fields}
            for name, fields in runs.items()
        ]
        arguments = {
            "strategy": strategy,
            "devices": 2 if strategy == "mirrored" else 1,
            "timeout": timeout,
            "runs": runs,
        }
        addresses = free_addresses(workers)
        processes = []
        for index in range(workers) if start is None else start:
            environment = dict(os.environ)
            if strategy == "workers":
                environment["TF_CONFIG"] = json.dumps(
                    {
                        "cluster": {"worker": addresses},
                        "task": {"type": "worker", "index": index},
                    }
                )
            with open(self.folder / f"log{index}", "w") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "tests.helpers.run_training",
                            json.dumps(arguments),
                        ],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                )
        return processes

    def log(self, index=0):
        return (self.folder / f"log{index}").read_text()

    def ended(self, processes, seconds=300):
        """Waits for processes, and gives their exit statuses."""
        try:
            return [process.wait(seconds) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def complete(self, *arguments, **keywords):
        """Runs to the end, which must be a good one."""
        processes = self.run(*arguments, **keywords)
        statuses = self.ended(processes)
        assert not any(statuses), self.log(statuses.index(max(statuses)))

    def state(self, name):
        return read_state(self.folder / name)

    def history(self, name):
        """The rows of a run's history, without those of time."""
        with open(self.folder / name / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            del row["data_wait"], row["images_per_second"]
        return rows


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for each in sockets:
        each.close()
    return addresses
