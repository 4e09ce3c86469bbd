"""A bucket of an emulated Google Cloud Storage, gs://bucket, for child processes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.handlers import buckets, objects

NAME = "bucket"
SILENT_SECONDS = 20
"""After which a connection that says nothing is closed."""


@contextlib.contextmanager
def emulator() -> Iterator[tuple[dict[str, str], Callable[[], set[str]]]]:
    """(environment in which programs find the bucket, names() of the objects that are in it)."""
    store, lock = storage.Storage(use_memory_fs=True), threading.Lock()
    buckets.create_bucket(NAME, store)
    # The emulator's own server reads one connection at a time: one that a client opened and keeps silent about, as
    # pools of connections do, would hold up all others for ever.
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, store))

    def names() -> set[str]:
        with lock:
            return {entry["name"] for entry in store.get_file_list(NAME)[0]}

    thread = threading.Thread(target=running.serve_forever, daemon=True)
    with _repaired(lock):
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}"
        try:
            yield (
                {
                    "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
                    "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
                    "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax
                    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask the true service for the kind of bucket
                    "NO_GCE_CHECK": "true",  # nor is a metadata server asked for credentials, nor a proxy for either
                    **{name: "127.0.0.1" for name in ("NO_PROXY", "no_proxy") if urllib.request.getproxies()},
                },
                names,
            )
        finally:
            running.shutdown()
            running.server_close()


class _Handler(server.RequestHandler):
    timeout = SILENT_SECONDS


@contextlib.contextmanager
def _repaired(lock: threading.Lock) -> Iterator[None]:
    """What readers rely on and the emulator lacks: threads, whole objects, suffix ranges, generations."""
    read_body, get_header, handle_request = server._read_raw_data, server.Request.get_header, server.Router.handle

    def one_at_a_time(self, method):
        with lock:
            if "/moveTo/" in self._request_handler.path:  # unknown; its own answer is one that clients try again
                self._request_handler.send_error(http.HTTPStatus.BAD_REQUEST)
            else:
                handle_request(self, method)

    def whole_body(request):
        body, length = read_body(request), request.headers.get("Content-Length")
        if body is not None and length and len(body) < int(length):
            raise ConnectionError("the client was gone in the middle of an object, which is none then")
        return body

    def with_suffix_ranges(self, key, default=None):
        value = get_header(self, key, default)
        if key.lower() == "range" and value and value.startswith("bytes=-"):
            size = len(self._request_handler.storage.get_file(self.params["bucket_name"], self.params["object_id"]))
            return f"bytes={max(0, size - int(value.removeprefix('bytes=-')))}-"
        return value

    plain = objects.download, objects.insert
    repaired = _with_generation(plain[0]), _conditional(plain[1])
    exchanged = [(handlers, dict(handlers)) for _, handlers in server.HANDLERS]
    server.Router.handle, server._read_raw_data = one_at_a_time, whole_body
    server.Request.get_header = with_suffix_ranges
    objects.download = repaired[0]  # by this name others of the module call it
    for handlers, before in exchanged:
        handlers.update({kind: repaired[plain.index(f)] for kind, f in before.items() if f in plain})
    try:
        yield
    finally:
        server.Router.handle, server._read_raw_data = handle_request, read_body
        server.Request.get_header, objects.download = get_header, plain[0]
        for handlers, before in exchanged:
            handlers.update(before)


def _generation(store, name: str) -> str:
    """Of an object; '0' where there is none."""
    try:
        return store.get_file_obj(NAME, name)["generation"]
    except objects.NotFound:
        return "0"


def _with_generation(download):
    def handle(request, response, store, *args, **kwargs):
        found = _generation(store, request.params["object_id"])
        if request.query.get("ifGenerationNotMatch", [None])[0] == found != "0":
            response.status = http.HTTPStatus.NOT_MODIFIED
            return
        if found != "0":
            response["x-goog-generation"] = found
        download(request, response, store, *args, **kwargs)

    return handle


def _conditional(upload):
    def handle(request, response, store, *args, **kwargs):
        wanted, name = (request.query.get(key, [None])[0] for key in ("ifGenerationMatch", "name"))
        if wanted is not None and name and _generation(store, name) != wanted:
            request.data  # noqa: B018  (it must be read from the connection)
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            return
        upload(request, response, store, *args, **kwargs)

    return handle
