"""A hub on 127.0.0.1 that behaves as told: python server.py FOLDER, where FOLDER/org/name/COMMIT/FILE are the files.

Two ports: the hub's, and the one of the store that it redirects to. Prints both. PUT /-/behaviour sets what it does
(:data:`GOOD`; the kinds of fault are in :meth:`Handler.answer`), GET /-/log gives every request of both ports. Ends when
its stdin does.
"""

import json
import mmap
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

#: ``refs``: repository → name of a revision → commit. ``push``: the same, and takes effect after the next request.
#: ``token``: without it the answer is 401. ``gated``: nobody may. ``redirect``: to the "store", a "relative" address on the
#: hub itself, or in a "loop". ``faults``: dictionaries with a ``kind``; ``file``: a pattern; ``range``: a pattern; ``skip``:
#: how many matching requests are answered well before; ``times``: how many are not, then.
GOOD = {"refs": {}, "push": {}, "token": None, "gated": False, "redirect": None, "faults": []}

behaviour = dict(GOOD)
log = []
lock = threading.Lock()
open_now = 0
released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.send(body)

    def send(self, body):
        for start in range(0, len(body), 65536):
            self.wfile.write(body[start : start + 65536])
            self.entry["sent"] += len(body[start : start + 65536])

    def do_PUT(self):
        self.entry = {"sent": 0}
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        released.set()
        with lock:
            released.clear()
            behaviour.clear()
            behaviour.update(GOOD | told)
            log.clear()
        self.reply(200)

    def do_GET(self):
        global open_now
        if self.path == "/-/log":
            self.entry = {"sent": 0}
            with lock:
                body = json.dumps(log).encode()
            return self.reply(200, body)
        with lock:
            open_now += 1
            self.entry = {
                "port": self.server.name,
                "method": self.command,
                "path": unquote(self.path),
                "range": self.headers["Range"],
                "authorization": self.headers["Authorization"],
                "agent": self.headers["User-Agent"],
                "encoding": self.headers["Accept-Encoding"],
                "peer": self.client_address[1],
                "at once": open_now,
                "sent": 0,
            }
            log.append(self.entry)
        try:
            if self.server.name == "hub":
                self.hub()
            else:
                self.answer(self.server.folder / unquote(self.path.removeprefix("/store/").split("?")[0]), None)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with lock:
                open_now -= 1

    do_HEAD = do_POST = do_GET  # noqa: N815

    def hub(self):
        match = re.fullmatch(r"(/cache)?/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", self.path)
        if not match:
            return self.reply(404)
        repository, revision, file = (unquote(part) for part in match.groups()[1:])
        refs = behaviour["refs"].get(repository)
        if refs is None:
            return self.reply(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
        if behaviour["token"] and self.headers["Authorization"] != f"Bearer {behaviour['token']}":
            return self.reply(401, X_Error_Message="Invalid credentials in Authorization header")
        if behaviour["gated"]:
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access to it is restricted.")
        commit = revision if revision in refs.values() else refs.get(revision)
        if commit is None:
            return self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        with lock:
            if behaviour["push"]:
                behaviour["refs"] = {**behaviour["refs"], **behaviour.pop("push")}
                behaviour["push"] = {}
        path = self.server.folder / repository / commit / file
        if not path.is_file():
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        where = behaviour["redirect"]
        if where == "loop":
            return self.reply(302, Location=self.path)
        if where == "store" and file.endswith(".safetensors"):
            location = f"http://127.0.0.1:{self.server.store}/store/{repository}/{commit}/{file}?signature=secret"
            return self.reply(302, b"Found.", Location=location, X_Repo_Commit=commit)
        if where == "relative" and not match[1]:
            return self.reply(307, Location=f"/cache{self.path}", X_Repo_Commit=commit)
        return self.answer(path, commit)

    def fault(self, file):
        """The first fault that this request meets."""
        with lock:
            for fault in behaviour["faults"]:
                if not re.search(fault.get("file", ""), file):
                    continue
                if not re.search(fault.get("range", ""), self.headers["Range"] or ""):
                    continue
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                elif fault.get("times", 1) > 0:
                    fault["times"] = fault.get("times", 1) - 1
                    return fault
        return {"kind": None}

    def answer(self, path, commit):
        fault = self.fault(path.name)
        kind = fault["kind"]
        if kind == "status":
            return self.reply(fault["status"], b"<html>" * 9, X_Repo_Commit=commit, **fault.get("headers", {}))
        if kind == "stall":
            released.wait(10)
            self.close_connection = True
            return None
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        headers = {"X_Repo_Commit": commit}
        if kind == "other commit":
            headers["X_Repo_Commit"] = "f" * 40
        if kind == "no commit":
            headers["X_Repo_Commit"] = None
        if kind == "gzip":
            headers["Content_Encoding"] = "gzip"
        status, start, stop = 200, 0, size
        if asked and kind != "ignores range":
            start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
            if start >= size:
                return self.reply(416, Content_Range=f"bytes */{size}", X_Repo_Commit=commit)
            status = 206
            if kind in ("less", "shrunk"):
                stop -= 5
            shown = start + 1 if kind == "wrong range" else start
            total = {"unknown size": "*", "shrunk": stop}.get(kind, size)
            headers["Content_Range"] = f"bytes {shown}-{stop - 1}/{total}"
        body = memoryview(b"")
        if stop > start:
            with path.open("rb") as file:
                body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start:stop]
        if kind == "garbage":
            body = bytes(fault["byte"] for _ in body)
        if kind == "short":
            body = body[: len(body) // 2]
        if kind == "no length":
            headers["Content_Length"] = None
            headers["Connection"] = "close"
            self.close_connection = True
        if kind == "huge":
            headers["Content_Length"] = 10**12
            self.close_connection = True
        if kind in ("cut", "stalls midway", "trickles"):
            self.close_connection = True
            half = len(body) // 2
            headers["Content_Length"] = len(body)
            self.reply(status, body[:half], **headers)
            if kind == "stalls midway":
                released.wait(10)
            if kind == "trickles":
                for byte in body[half:]:
                    self.send(bytes([byte]))
                    time.sleep(0.02)
            return None
        if kind == "slow":
            time.sleep(fault["seconds"])
        return self.reply(status, body, **headers)


def serve(name, folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.name, server.folder = name, folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    store = serve("store", folder)
    hub = serve("hub", folder)
    hub.store = store.server_port
    print(hub.server_port, store.server_port, flush=True)
    sys.stdin.read()
