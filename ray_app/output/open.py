"""Opens an OUTPUT by its name: a local path, or the URL of an object store.
Knows which kind of output a name stands for."""

from ray_app.errors import OutputRefused
from ray_app.output.output import Output


def open_output(url: str) -> Output:
    """An OUTPUT by its local path, or by its URL in an object store.

    Raises:
        Refused: not the name of a folder, or of a known kind of store.
    """
    if not url.strip():
        raise OutputRefused(f"--output_base_path {url!r}: not the name of a folder", flag="output_base_path")
    if "://" in url:
        from ray_app.output.object_store import ObjectStoreOutput

        try:
            return ObjectStoreOutput(url)
        except OSError as error:
            raise OutputRefused(f"--output_base_path {url}: {error.strerror}", flag="output_base_path") from None
    from ray_app.output.local import LocalOutput

    return LocalOutput(url)
