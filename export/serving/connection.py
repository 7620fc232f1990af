"""How a client reaches a server: address, TLS and one HTTP request."""

import gzip
import http.client
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from export.serving.responses import (
    ServingError,
    connection_problem,
    invalid,
)

MAX_RESPONSE_BYTES = 64 << 20


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: `"HOST:PORT"`.
        path: what comes before `/v1/models`, such as `"/serving"`.
        tls: whether the connection is encrypted.
    """

    host: str
    path: str = ""
    tls: bool = False


def parse_address(address: str, tls: bool = False) -> Address:
    """Reads `HOST:PORT` or the URL of a server.

    Args:
        address: `"HOST:PORT"`, `"http://HOST[:PORT][/PATH]"` or
            `"https://..."`.
        tls: whether to encrypt the connection; `https://` does.

    Raises:
        ValueError: it is neither, or is `http://` with TLS.

    Example:
    >>> parse_address("https://models.example/serving")
    Address(host='models.example:443', path='/serving', tls=True)
    """
    match = re.fullmatch(
        r"(?:(https?)://)?([\w.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?"
        r"(/[\w.~/-]*)?",
        address,
    )
    scheme, host, port, path = match.groups() if match else 4 * ("",)
    if scheme:
        port = port or {"http": "80", "https": "443"}[scheme]
    elif path:
        port = None
    if not port or not 0 < int(port) < 1 << 16:
        raise ValueError(
            "The server must be HOST:PORT, such as localhost:8500, or for REST "
            f"a URL, such as https://models.example. Got {address!r}."
        )
    if tls and scheme == "http":
        raise ValueError(
            f"TLS needs https:// or HOST:PORT. Got the server {address!r}."
        )
    path = (path or "").rstrip("/")
    return Address(f"{host}:{port}", path, tls or scheme == "https")


def read_ca(ca: str | Path) -> bytes:
    """Reads the certificates of authorities.

    Args:
        ca: PEM file.

    Raises:
        ValueError: it has no certificates.
        OSError: it cannot be read.
    """
    content = Path(ca).read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ValueError, ssl.SSLError):
        raise ValueError(f"{str(ca)!r} has no certificates in PEM.") from None
    return content


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Checks the headers of requests, whose values may be secret.

    Raises:
        ValueError: a name or value has characters that are not allowed.

    Example:
    >>> check_headers({"Authorization": "Bearer a1b2"})
    {'Authorization': 'Bearer a1b2'}
    """
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(
                "The name of a header must consist of letters, digits and -. "
                f"Got {name!r}."
            )
        if not re.fullmatch(r"[ -~]*", value):
            raise ValueError(
                f"The value of the header {name!r} must be printable ASCII."
            )
    return dict(headers)


def post(
    address: Address,
    path: str,
    body: bytes,
    timeout: float,
    context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    compress: bool = False,
) -> tuple[int, str, bytes]:
    """One HTTP request.

    Args:
        address: of the server.
        path: of the resource, behind the path of the address.
        body: JSON.
        timeout: seconds, from connecting to the last byte.
        context: whom to trust, for TLS.
        headers: more headers.
        compress: whether to compress the request, and accept that of the
            response.

    Returns:
        Status, reason and content of the response.

    Raises:
        ServingError: there is no whole response within the time.
    """
    headers = {"Content-Type": "application/json", **(headers or {})}
    if compress:
        headers |= {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
        body = gzip.compress(body, compresslevel=6, mtime=0)
    deadline = time.monotonic() + timeout
    connection = http.client.HTTPConnection(address.host, timeout=timeout)
    expired = threading.Event()

    def expire() -> None:  # ends a response that comes byte by byte
        expired.set()
        with suppress(OSError):  # it may be closed already
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    timer = None
    try:
        connection.connect()
        # The connection forgets it once the server has said that it closes.
        stream = connection.sock
        timer = threading.Timer(deadline - time.monotonic(), expire)
        timer.daemon = True
        timer.start()
        if context:
            stream = connection.sock = context.wrap_socket(
                stream,
                server_hostname=connection.host,
                do_handshake_on_connect=False,
            )
            stream.do_handshake()
        # A server may answer and close before it has read a large request.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", address.path + path, body, headers)
        response = connection.getresponse()
        text = response.read(MAX_RESPONSE_BYTES + 1)
        if response.length and len(text) <= MAX_RESPONSE_BYTES:
            raise http.client.IncompleteRead(text, response.length)
        if expired.is_set():
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise ServingError(
                "DEADLINE_EXCEEDED",
                f"{address.host} did not respond within {timeout:.3g} s",
            ) from None
        if type(error) is http.client.BadStatusLine:
            raise ServingError(
                "FAILED_PRECONDITION",
                f"{address.host} does not speak HTTP. For gRPC, omit "
                "--protocol rest, or give another port.",
            ) from None
        message = str(error) or type(error).__name__
        raise connection_problem(address.host, message) from None
    finally:
        if timer:
            timer.cancel()
        connection.close()
    if response.headers.get("Content-Encoding") == "gzip":
        text = decompress(text)
    if len(text) > MAX_RESPONSE_BYTES:
        raise invalid(f"it has more than {MAX_RESPONSE_BYTES} bytes")
    return response.status, response.reason, text


def decompress(data: bytes) -> bytes:
    """Content of a gzip file, up to one byte more than a response may have."""
    try:
        return zlib.decompressobj(wbits=31).decompress(
            data, MAX_RESPONSE_BYTES + 1
        )
    except zlib.error as error:
        raise invalid(f"{error}") from None
