"""The server of `export web --serve` shows the site and nothing else."""

import base64
import hashlib
import http.client
import re
import threading

import pytest

from export.__main__ import main
from export.web.server import site_server
from export.web.site import PAGE
from tests.helpers.commands import exit_status


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    (folder / "secret.txt").write_text("secret")
    site = folder / "site"
    (site / "examples").mkdir(parents=True)
    (site / "index.html").write_text("the page")
    (site / "model.tflite").write_bytes(b"model")
    (site / "link.txt").symlink_to(folder / "secret.txt")
    (site / "parent").symlink_to(folder)
    (site / "again.html").symlink_to("index.html")
    (site / "examples" / "index.htm").symlink_to(folder / "secret.txt")
    (site / "empty").mkdir()
    with site_server(site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, host="localhost:{}", method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.putrequest(method, path, skip_host=True)
    if host:
        connection.putheader("Host", host.format(server.server_port))
    connection.endheaders()
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "localhost"])
@pytest.mark.parametrize("path", ["/", "/index.html", "/again.html"])
def test_files_are_sent(server, path, host):
    response, content = get(server, path, host)
    assert (response.status, content) == (200, b"the page")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors" in response.headers["Content-Security-Policy"]
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    [
        "/empty/",
        "/examples/",
        "/link.txt",
        "/parent/",
        "/parent/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "//etc/passwd",
        "/missing",
        "/a%00b",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_else_is_sent(server, path, method):
    response, content = get(server, path, method=method)
    assert response.status == 404
    assert b"secret" not in content and b"model.tflite" not in content


@pytest.mark.parametrize("host", [None, "", "evil.example", "localhost:1"])
def test_other_hosts_are_refused(server, host):
    response, content = get(server, "/", host)
    assert response.status == 421
    assert b"the page" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_is_received(server, method):
    response, _ = get(server, "/", method=method)
    assert response.status == 501


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_out_of_range(port, tmp_path, capsys):
    options = ["--output", tmp_path, "--serve", "--port", port]
    assert exit_status(main, "web", *options) == 2
    assert "--port" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"The port must be in 0\.\.\.65535"):
        site_server(tmp_path, int(port))


def test_a_port_in_use(server, tmp_path, capsys):
    options = ["--output", tmp_path, "--serve", "--port", server.server_port]
    assert exit_status(main, "web", *options) == 1
    error = capsys.readouterr().err
    assert f"Cannot use port {server.server_port}: Address already" in error


def test_the_page_has_no_other_origin():
    """The policy in the page allows none, and the page names none."""
    html = (PAGE / "index.html").read_text()
    (policy,) = re.findall(r"content=\"(default-src 'none'.*?)\"", html)
    assert "unsafe-inline" not in policy and "http" not in policy
    for script in re.findall(
        r"<script(?: type=\"importmap\")?>(.*?)</script>", html, re.S
    ):
        digest = hashlib.sha256(script.encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    loaded = re.findall(r"(?:src|rel=\"stylesheet\" href)=\"(.*?)\"", html)
    assert loaded == ["style.css", "page.js"]
