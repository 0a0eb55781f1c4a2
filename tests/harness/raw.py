"""S3 over a bare socket: what is sent is exactly what the test says, what came back is kept whole."""

import hashlib
import http.client
import io
import socket
import xml.etree.ElementTree as tree

from harness import sigv4

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
TIMEOUT_SECS = 30


class Answer:
    def __init__(self, response, body):
        self.status, self.reason, self.headers, self.body = response.status, response.reason, response.headers, body

    def __repr__(self):
        return f"<{self.status} {dict(self.headers)} {self.body[:600]!r}>"

    @property
    def xml(self):
        """The document without its namespace, which `namespace` gives."""
        root = tree.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    @property
    def namespace(self):
        tag = tree.fromstring(self.body).tag
        return tag[1:].partition("}")[0] if tag.startswith("{") else None

    @property
    def code(self):
        """The code of an error document, None if there is no document."""
        return self.xml.findtext("Code") if self.body else None

    def texts(self, path):
        return [element.text or "" for element in self.xml.findall(path)]


class Connection:
    """One TCP connection on which several requests may follow each other."""

    def __init__(self, port, timeout=TIMEOUT_SECS):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)

    def send(self, data):
        self.socket.sendall(data)

    def answer(self, method="GET"):
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        return Answer(response, response.read())

    def is_closed_by_peer(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Raw:
    """Signed requests by hand. `path` is raw: escape keys with sigv4.encode_key."""

    def __init__(self, server, signer=None):
        self.server = server
        self.host = f"127.0.0.1:{server.port}"
        self.signer = signer or sigv4.Signer(server.access_key, server.secret_key, server.region)

    def connect(self):
        return Connection(self.server.port)

    def head(self, method, path, query=(), headers=None, body=b"", payload_hash=None, date=None, anonymous=False,
             leave_unsigned=(), length=True, version="1.1"):
        """The bytes of a request's head, its signature and its date."""
        headers = {"host": self.host} | {name.lower(): value for name, value in (headers or {}).items()}
        if length and "content-length" not in headers and (body or method in ("PUT", "POST")):
            headers["content-length"] = str(len(body))
        signature = None
        if not anonymous:
            payload_hash = payload_hash or hashlib.sha256(body).hexdigest()
            headers, signature, date = self.signer.sign(method, path, list(query), headers, payload_hash, date, leave_unsigned)
        return self.lines(method, path, query, headers, version), signature, date

    @staticmethod
    def lines(method, path, query, headers, version="1.1"):
        target = path + ("?" + "&".join(sigv4.encode(n) + (f"={sigv4.encode(v)}" if v is not None else "") for n, v in query) if query else "")
        text = f"{method} {target} HTTP/{version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return text.encode("utf-8", "surrogateescape") + b"\r\n"

    def call(self, method, path, query=(), headers=None, body=b"", **options):
        head, _, _ = self.head(method, path, query, headers, body, **options)
        return self.exchange(head + body, method)

    def exchange(self, data, method="GET"):
        with self.connect() as connection:
            try:
                connection.send(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The server may answer and close before it has read everything.
            return connection.answer(method)

    def presigned(self, method, path, query=(), expires=300, headers=None, date=None, body=b"", sent=None):
        """`headers` are signed and sent; `sent` are sent only."""
        pairs = self.signer.presign(method, path, self.host, query, expires, headers, date)
        headers = {"host": self.host} | (headers or {}) | (sent or {})
        if body or method in ("PUT", "POST"):
            headers["content-length"] = str(len(body))
        return self.exchange(self.lines(method, path, pairs, headers) + body, method)

    def put(self, path, body=b"", headers=None, **options):
        return self.call("PUT", path, headers=headers, body=body, **options)

    def get(self, path, query=(), headers=None, **options):
        return self.call("GET", path, query, headers, **options)


def parse_answers(data):
    """Every answer in `data`, for pipelined requests."""

    class Buffer(io.BytesIO):
        def makefile(self, *_):
            return self

        def close(self):
            pass

    buffer, answers = Buffer(data), []
    while buffer.tell() < len(data):
        response = http.client.HTTPResponse(buffer)
        response.begin()
        answers.append(Answer(response, response.read()))
    return answers
