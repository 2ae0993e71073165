"""Remote files: the URL of an object store becomes a pyarrow filesystem and a path, its errors those of the system.
Knows stores and their words; nothing of what is stored."""

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from ray_app.errors import InputRefused, one_line

SCHEMES = ("s3", "gs", "abfs")
PARAMETERS = ("region", "endpoint_override", "scheme")
"""The query parameters of an s3:// URL."""
CONNECT_SECONDS = 10
ANSWER_SECONDS = 30
"""A request that receives no byte for this long has failed. Arrow's own 3 s are too short for a store under load."""
TRIES = 4
"""Of each request, by the store's own client, before it raises an error."""


def is_remote(url: str) -> bool:
    """Whether it names something in an object store rather than a path."""
    return "://" in url


@functools.lru_cache(maxsize=8)
def connect(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, one per process, and the path in it without a final slash. Does not connect yet.

    s3:// takes `region`, `endpoint_override` and `scheme` as query parameters, else AWS_ENDPOINT_URL(_S3) and
    AWS_REGION; the region of a bucket on AWS itself is looked up. Credentials come from where each store's own client
    looks for them.

    Raises:
        Refused: an unknown kind of store, no bucket, credentials in the URL.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise InputRefused(f"{url}: {scheme}:// is not known; give a path, or one of {', '.join(SCHEMES)} (as s3://…)")
    name, _, query = rest.partition("?")
    bucket, _, key = name.removesuffix("/").partition("/")
    user, at, host = bucket.rpartition("@")
    if at and (scheme != "abfs" or ":" in user):
        raise InputRefused(
            f"{scheme}://…@{host}{key and '/'}{key}: no credentials in a URL, it is printed and recorded;"
            " set them in the environment (AWS_ACCESS_KEY_ID, …)"
        )
    if not bucket:
        raise InputRefused(f"{url}: names no bucket; {scheme}://bucket/prefix")
    parts = key.split("/") if key else []
    for part in parts:
        if part in ("", ".", ".."):
            raise InputRefused(f"{url}: has {part!r} between two slashes; write the name without that")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := next((name for name in given if scheme == "s3" and name not in PARAMETERS), None):
        raise InputRefused(f"{url}: {unknown}: unknown parameter; after ? it can be one of {', '.join(PARAMETERS)}")
    with as_os_error(url, action="opened"):
        if scheme == "s3":
            return _s3(bucket, given), "/".join([bucket, *parts])
        try:
            filesystem, path = FileSystem.from_uri(url)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputRefused(f"{url}: {one_line(error)}") from None
        path = path.rstrip("/")
        if path.split("/")[1:] != parts:  # the library reads % and # in its own way, and would work elsewhere
            raise InputRefused(f"{url}: would be read as {path}; take a name without # and %")
        return filesystem, path


def read_file(url: str) -> bytes:
    """A remote file's content.

    Raises:
        OSError: see `as_os_error`.
    """
    filesystem, path = connect(url)
    with as_os_error(url, action="read"), filesystem.open_input_file(path) as file:
        return file.read()


@contextlib.contextmanager
def as_os_error(path: str, action: str) -> Iterator[None]:
    """Raise the errors of a store as the OSErrors that a filesystem would raise.

    FileNotFoundError for what does not exist, PermissionError for credentials, EIO for what may be transient.

    Args:
        path: what the error is about, as messages name it.
        action: what can't be done with it, as a participle: "read", "written".
    """
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        text = _short(one_line(error, 500))
        raise OSError(_errno(error, text), f"can't be {action}: {text}", path) from error


def reason(error: Exception) -> str | None:
    """What a store says in an error that a library raised; None if the error is not a store's."""
    text = one_line(error, 500)
    return _short(text) if re.search(r"AWS Error|google::cloud|GCS|Azure", text) else None


def _s3(bucket: str, given: dict[str, str]) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
    *endpoints, region, fallback = (os.environ.get(name) for name in variables)
    endpoint = next(filter(None, (given.get("endpoint_override"), *endpoints)), "")
    scheme, _, host = endpoint.rpartition("://")
    region = given.get("region") or region or fallback
    if not endpoint and not given.get("region"):
        region = resolve_s3_region(bucket)  # AWS itself knows; the environment's may be of another bucket
    return S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=host.rstrip("/") or None,
        scheme=given.get("scheme") or scheme or "https",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=ANSWER_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=TRIES),
        allow_delayed_open=True,  # a small file is one PUT instead of three requests
    )


_FORBIDDEN = re.compile(
    r"ACCESS_DENIED|FORBIDDEN|INVALID_ACCESS_KEY|SIGNATURE|CREDENTIALS|TOKEN|HTTP status 40[13]|PERMISSION_DENIED|"
    r"UNAUTHENTICATED|AuthorizationFailure|AuthenticationFailed|status: 40[13]",
    re.IGNORECASE,
)
_MISSING = re.compile(r"NO_SUCH_BUCKET|Bucket .* not found|does not exist|ContainerNotFound|NOT_FOUND")


def _errno(error: Exception, text: str) -> int:
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return errno.ENOENT
    if _FORBIDDEN.search(text):
        return errno.EACCES
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EINVAL if isinstance(error, ValueError) else errno.EIO


def _short(text: str) -> str:
    """What the store said, without Arrow's account of what it was doing."""
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", text)
    aws_error = re.search(r"AWS Error (.*)", text)
    if aws_error is None:
        return "no such file" if "Path does not exist" in text else text
    return aws_error[1].split("; Details:")[0].strip().rstrip(".")
