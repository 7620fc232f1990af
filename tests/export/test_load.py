"""Two minutes of 32 clients at once; one image in five is refused.

The server runs requests that arrive together as one.
"""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from benchmarks import image_files
from export.serving.client import Client, GrpcClient, RestClient
from export.serving.model_folder import write_version
from tests.helpers.models import randomise, small

CLIENTS = 32
SECONDS = 120
SERVER = """
import sys
from pathlib import Path
from tests.helpers.serving import Server
with Server(Path(sys.argv[1]), {}, batch_sizes=(1, 2, 4, 8)) as server:
    print(server.grpc_address, server.rest_address, flush=True)
    sys.stdin.read()
"""


def bad_images() -> list[bytes]:
    liars = image_files.liars()
    return [
        *image_files.oversized().values(),
        *(image_files.animation("WEBP"), image_files.animation("WEBP")[:999]),
        *(liars["JPEG, 12 bits"], liars["PNG, data of fewer rows"]),
        *(liars["text"], liars["nothing"]),
    ]


def megabytes(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.large
def test_a_server_under_load(tmp_path):
    """Good images are classified right, bad ones refused; memory stays flat."""
    model = randomise(small())
    labels = [f"class {i}" for i in range(5)]
    folder = tmp_path / "tiny"
    write_version(model, labels, folder, batch_sizes=(1,))
    saved = tf.saved_model.load(str(folder / "1"))
    good = [
        image_files.encode(image_files.example(seed=seed), kind)
        for seed, kind in enumerate(("JPEG", "PNG", "BMP") * 4)
    ]
    result = saved.signatures["serving_default"](image_bytes=tf.constant(good))
    expected = result["scores"].numpy()
    bad = bad_images()

    def send(client: Client, seed: int, end: float) -> tuple[int, int]:
        """Sends images until a time; counts those classified and refused."""
        draw = random.Random(seed)
        classified = refused = 0
        while time.monotonic() < end:
            if draw.random() < 0.2:
                (error,) = client.classify([draw.choice(bad)])
                assert error.code == "INVALID_ARGUMENT", error
                refused += 1
                continue
            index = draw.randrange(len(good))
            (best,) = client.classify([good[index]])
            scores = [score for _, score in best]
            assert scores == pytest.approx(expected[index].tolist(), abs=1e-5)
            classified += 1
        return classified, refused

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        grpc, rest = server.stdout.readline().split()
        clients = [
            GrpcClient(grpc, "tiny", timeout=SECONDS),
            RestClient(rest, "tiny", timeout=SECONDS),
        ]
        clients *= CLIENTS // 2
        begin = time.monotonic()
        memory = []
        with ThreadPoolExecutor(CLIENTS) as threads:
            sent = [
                threads.submit(send, client, seed, begin + SECONDS)
                for seed, client in enumerate(clients)
            ]
            for _ in range(6):
                time.sleep(SECONDS / 6)
                memory.append(round(megabytes(server.pid)))
            counts = [one.result() for one in sent]
    finally:
        server.communicate()
    classified, refused = map(sum, zip(*counts, strict=True))
    print(f"{classified} classified, {refused} refused; MB: {memory}")
    assert server.returncode == 0
    assert 0.15 < refused / (classified + refused) < 0.25
    assert memory[-1] < 1.1 * memory[0]
