"""Images of folders and Parquet files: which they are, what they are called, and their bytes again."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import InputRefused
from ray_app.features.sources import Gallery, read_image


def found(url: Path | str) -> dict[str, bytes | str]:
    """Each name with the bytes that are read for it, or the error's type; every checksum is that of those bytes."""
    gallery = Gallery(str(url))
    contents: dict[str, bytes | str] = {}
    for image in gallery.read().to_pylist():
        if image["sha256"] is None:
            contents[image["name"]] = image["error_type"]
            continue
        data = read_image([gallery.place, gallery.place], image)
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        contents[image["name"]] = data
    return contents


def test_a_folders_images_are_called_by_their_stems(tmp_path):
    for name in ("a.jpg", "b/c.PNG", "b/d.e.webp", "notes.txt", ".hidden.jpg", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert found(tmp_path) == {"a": b"a.jpg", "c": b"b/c.PNG", "d.e": b"b/d.e.webp"}


def test_parquet_files_have_paths_or_bytes(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    rows = [{"path": "images/a.jpg"}, {"path": str(tmp_path / "b.jpg")}, {"path": "none.jpg"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "paths.parquet")
    assert found(tmp_path / "paths.parquet") == {"a": b"a", "b": b"b", "none": "FileNotFoundError"}

    folder = tmp_path / "parts"
    folder.mkdir()
    rows = [{"id": number, "bytes": f"image {number}".encode()} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet", row_group_size=2)
    rows = [{"image": {"bytes": b"x", "path": "d/x.png"}}, {"image": {"bytes": b"y", "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "1.parquet")
    assert found(folder) == {**{str(n): f"image {n}".encode() for n in range(5)}, "x": b"x", "1_0_1": b"y"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "--images HERE/none: no such folder or Parquet file, or an empty one"),
        ("none.parquet", "--images HERE/none.parquet: no such folder or Parquet file, or an empty one"),
        ("empty", "--images HERE/empty: no such folder or Parquet file, or an empty one"),
        (
            "texts",
            "--images HERE/texts: no image in it (.jpg, .jpeg, .png, .webp, .bmp",
        ),
        (
            "other.parquet",
            "--images HERE/other.parquet: has columns a; it needs 'path' (strings), or",
        ),
        ("broken.parquet", "--images HERE/broken.parquet: can't be read: "),
        ("http://host/images", "--images http://host/images: can't be read: http://host/images: http:// is not known"),
    ],
)
def test_what_is_no_gallery_is_told(tmp_path, name, message):
    for folder in ("empty", "texts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputRefused) as raised:
        found(name if "://" in name else tmp_path / name)
    assert str(raised.value).startswith(message.replace("HERE", str(tmp_path)))
