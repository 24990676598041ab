#!/usr/bin/env python3
"""A model hub of our own for fetch_test.sh: fetch_hub.py ROOT FAULT PORT_FILE.

Serves ROOT with ranges and, for .safetensors files, the headers by which the real hub announces LFS files. FAULT is
none, cut (bodies of .safetensors stop after 1,000,000 bytes), norange (ranges are ignored) or wronghash.
"""
import hashlib
import http.server
import pathlib
import sys

ROOT, FAULT, PORT_FILE = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
CUT = 1_000_000


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        print(self.command, self.path, "Range:", self.headers.get("Range", "none"), file=sys.stderr, flush=True)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = ROOT / self.path.lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        start = 0
        wanted = self.headers.get("Range")
        if wanted and FAULT != "norange":
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        if start >= len(content) and start > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        large = path.suffix == ".safetensors"
        if large:
            digest = "0" * 64 if FAULT == "wronghash" else hashlib.sha256(content).hexdigest()
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            end = start + CUT if large and FAULT == "cut" else len(content)
            self.wfile.write(content[start:end])
            self.close_connection = True


def main() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    PORT_FILE.write_text(str(server.server_port))
    server.serve_forever()


if __name__ == "__main__":
    main()
