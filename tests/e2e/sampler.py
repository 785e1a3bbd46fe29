"""A web app of the standard library alone that shows what reached it, streams, and speaks WebSocket."""

from __future__ import annotations

SAMPLER = {
    "Procfile": "web: python3 -u app.py\n",
    "app.py": r"""
import base64, hashlib, http.server, json, os, time

class Sampler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.path.startswith("/status/"):
            return self.answer(int(self.path[8:]), b"as you like")
        if self.path == "/drop":
            self.close_connection = True
            return self.connection.close()
        seen = {"path": self.path, "client": self.client_address[0], "version": self.request_version}
        seen["headers"] = {name.lower(): value for name, value in self.headers.items()}
        self.answer(200, json.dumps(seen).encode(), "application/json")

    def do_POST(self):
        # every chunk goes back before the next is read
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            size = int(self.rfile.readline(), 16)
            data = self.rfile.read(size + 2)[:-2]
            self.wfile.write(b"%x\r\n%s\r\n" % (size, data.upper()))
            if not size:
                return

    def websocket(self):
        digest = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                return
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(head[1] & 127)))
            reply = b"echo " + text
            self.wfile.write(bytes([0x81, len(reply)]) + reply)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Sampler).serve_forever()
""",
}
"""Its files."""
