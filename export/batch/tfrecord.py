"""Parts of TFRecord files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from export.batch.locations import open_file
from export.batch.parts import Image
from keras_cait.command_line import one_line
from keras_cait.records import AFTER, BEFORE, LENGTH


@dataclass(frozen=True)
class Records:
    """A TFRecord shard of `tf.Example`s with `image/encoded`.

    An id is `image/filename` where there is one, otherwise `FILE#RECORD`.

    Attributes:
        file: path or URI.
        folder: where relative paths start.
        stamp: as in `export.batch.locations.file_stamp`.
    """

    file: str
    folder: str
    stamp: str
    count: None = None

    def read(self) -> Iterator[Image]:
        from tensorflow.core.example.example_pb2 import Example

        with open_file(self.file, self.folder, in_order=True) as file:
            stream = pa.BufferedInputStream(file, 1 << 20)
            for index, record in enumerate(_records(stream)):
                name = f"{self.file}#{index}"
                if isinstance(record, Exception):
                    yield Image(name, record)
                    return
                try:
                    features = Example.FromString(record).features.feature
                except Exception as error:  # protobuf's own
                    yield Image(name, ValueError(one_line(error)))
                    continue
                names = features["image/filename"].bytes_list.value
                images = features["image/encoded"].bytes_list.value
                yield Image(
                    names[0].decode(errors="replace") if names else name,
                    images[0]
                    if images
                    else ValueError("The record has no image/encoded."),
                )


def _records(stream: Any) -> Iterator[bytes | Exception]:
    """The records of a TFRecord file; a damaged one ends it."""
    while header := stream.read(BEFORE):
        size = LENGTH.unpack_from(header)[0] if len(header) == BEFORE else 0
        # An empty record has a checksum; zeros are what a crash leaves.
        is_record = any(header[LENGTH.size :]) and size < 1 << 31
        record = stream.read(size + AFTER) if is_record else b""
        if len(record) < size + AFTER:
            yield ValueError(
                "The file is compressed, damaged here, or no TFRecord file. "
                "What follows in it is not read."
            )
            return
        yield record[:size]
