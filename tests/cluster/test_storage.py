"""Storage on a local disk and in a real S3-compatible store."""

from cluster.storage import Storage


def test_an_object_is_read_back_from_the_store(s3_environment):
    storage = Storage(s3_environment.bucket("first"))
    storage.write("folder/object", b"bytes")
    assert storage.read("folder/object") == b"bytes"
