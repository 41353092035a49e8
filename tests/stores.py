"""A real S3 server on the loopback, in this process."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URL of an empty bucket of a server that ends with the module's tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        from pyarrow import fs

        from dcmpl import storage

        storage._filesystem.cache_clear()
        store = fs.S3FileSystem(
            endpoint_override=variables["AWS_ENDPOINT_URL"], allow_bucket_creation=True
        )
        store.create_dir("bucket")
        yield "s3://bucket"
        storage._filesystem.cache_clear()
    server.stop()
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") != "not-a-secret"


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Load each model once for all commands of a module's tests."""
    from dcmpl.scoring.scorer import DEFAULTS, Scorer, ScoringOptions

    real = Scorer.from_pretrained
    known = dict[tuple[object, ScoringOptions], Scorer]()

    def from_pretrained(
        model: object = None, options: ScoringOptions = DEFAULTS, **changes: Any
    ) -> Scorer:
        options = options.changed(**changes)
        if (str(model), options) not in known:
            known[str(model), options] = real(model, options)
        return known[str(model), options]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "from_pretrained", from_pretrained)
        yield
