"""A static server for the tests of the pages that run a model: the site at any path, with
other models than its own, and with files that are damaged or missing.
"""

import functools
import http.server
import threading
from pathlib import Path

MODELS = "_static/models/"


class LiveServer:
    """Serves the folder `html` under `prefix`, such as "" or "/owner/book"; models come
    from the folder `models` where that is given.
    """

    def __init__(self, html: Path, prefix: str = "", models: Path | None = None):
        self.asked: list[str] = []  # paths inside the site, in order
        self.instead: dict[str, bytes | None] = {}  # path: other bytes; None is missing
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                name = self.name()
                server.asked.append(name)
                if name not in server.instead:
                    return super().do_GET()
                data = server.instead[name]
                if data is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return None

            def name(self):
                path = self.path.partition("?")[0]
                return path.removeprefix(f"{prefix}/")

            def translate_path(self, path):
                name = self.name()
                if not path.startswith(f"{prefix}/"):
                    return str(html / "outside of the site")
                if models and name.startswith(MODELS):
                    return str(models / name.removeprefix(MODELS))
                return str(html / name)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(html))
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}{prefix}"

    def fetched(self) -> list[str]:
        """The files with weights that were asked for."""
        return [name for name in self.asked if name.endswith(".safetensors")]

    def close(self) -> None:
        """Ends the server."""
        self.server.shutdown()
        self.server.server_close()
