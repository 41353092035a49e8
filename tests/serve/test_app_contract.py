"""The service keeps what /openapi.json says, whatever is asked of it; never an error of its own."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from dcmpl.serve.app import service
from dcmpl.serve.queue import Limits
from served import by_brightness
from serving import listening

pytest_plugins = ("calibrated",)

PATHS = (
    *("/v1/score", "/v1/rank", "/v1/compare", "/v1/explain", "/v1/model"),
    *("/", "/docs", "/healthz", "/readyz", "/metrics"),
)


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with listening(service(by_brightness(), Limits(images=20))) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_path_is_held_to_it(schema: Any) -> None:
    assert {found.ok().path for found in schema.get_all_operations()} == set(PATHS)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described(schema: Any, path: str) -> None:
    for operation in schema[path].values():

        @settings(
            max_examples=40,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[*HealthCheck],
        )
        @given(case=operation.as_strategy())
        def answered(case: Any) -> None:
            # Whether bytes are an image no schema can say.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        answered()
