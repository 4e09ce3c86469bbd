"""A bucket of an emulated Google Cloud Storage, gs://bucket, for child processes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

NAME = "bucket"


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The environment in which programs find the bucket; skips where the emulator or gcsfs is not installed."""
    pytest.importorskip("gcsfs", reason="needs gcsfs (the extra `gcs`)")
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator (the extra `test`)")
    from gcp_storage_emulator import server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=NAME)
    _repair(server, running)
    running.start()
    address = f"http://127.0.0.1:{port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
            "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask the true service for the kind of bucket
        }
    finally:
        running.stop()


def _repair(server, running) -> None:
    """What readers rely on and the emulator lacks: suffix ranges, and the generation of what is downloaded."""
    get_header = server.Request.get_header

    def with_suffix_ranges(self, key, default=None):
        value = get_header(self, key, default)
        if key.lower() == "range" and value and value.startswith("bytes=-"):
            size = len(running._storage.get_file(self.params["bucket_name"], self.params["object_id"]))
            return f"bytes={max(0, size - int(value.removeprefix('bytes=-')))}-"
        return value

    def with_generation(download):
        def handle(request, response, storage, *args, **kwargs):
            with contextlib.suppress(Exception):
                found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
                response["x-goog-generation"] = found["generation"]
            download(request, response, storage, *args, **kwargs)

        return handle

    server.Request.get_header = with_suffix_ranges
    for _, handlers in server.HANDLERS:
        if handlers.get("GET") is server.objects.download:
            handlers["GET"] = with_generation(handlers["GET"])
