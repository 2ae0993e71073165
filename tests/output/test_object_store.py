"""OUTPUT in an object store: a real S3-speaking server over HTTP, with 503s, cut connections and slow answers."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from ray_app.annotations import circo
from ray_app.cli import main
from ray_app.errors import Refused
from ray_app.features import parts
from ray_app.features.sources import Gallery, read_image
from ray_app.index import part_writer
from ray_app.index.rows import quarantine_damaged, read_rows
from ray_app.index.schema import SCHEMA
from ray_app.output import remote, retry
from ray_app.output.object_store import ObjectStoreOutput
from ray_app.output.open import open_output
from tests.conftest import PACED, SAMPLE, read_tree, run_cli
from tests.gallery.test_pages import write_output
from tests.support import object_store
from tests.support.encoders import save_config, vector_of
from tests.support.object_store import BUCKET, ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store.running() as store, object_store.in_environment(store):
        yield store


@pytest.fixture
def store(server, monkeypatch) -> Iterator[ObjectStore]:
    """The server without a fault, and a client that knows nothing of it yet."""
    server.begin()
    remote.connect.cache_clear()
    yield server
    remote.connect.cache_clear()


@pytest.fixture
def output(store, request) -> ObjectStoreOutput:
    found = open_output(f"s3://{BUCKET}/{request.node.name}")
    assert isinstance(found, ObjectStoreOutput)
    return found


def test_files_are_written_listed_moved_and_removed(output):
    assert not output.exists()
    for name in ("step/combined/a.jpg", "step/combined_query2/b.jpg", "step/aug_features_x.npz", "index/part.parquet"):
        output.writer("run-1").write(name, name.encode())
    assert output.exists()
    assert output.folders() == ["index", "step"]
    assert output.file_sizes("step") == {"combined/a.jpg": 19, "combined_query2/b.jpg": 26}
    assert sorted(entry.name for entry in output.files("step")) == [
        "aug_features_x.npz", "combined/a.jpg", "combined_query2/b.jpg",
    ]  # fmt: skip
    assert output.list_names("index", "*.parquet") == ["index/part.parquet"]
    assert output.remove_feature_caches("step") == 1
    assert output.read("step/combined/a.jpg") == b"step/combined/a.jpg"
    for content in (b"first", b"second"):
        output.writer("run-1").write("step/combined/a.jpg", content)
        output.quarantine("step/combined/a.jpg")
    output.quarantine("step/combined/a.jpg")  # gone: no harm
    assert output.read(".set_aside/step/combined/a.jpg") == b"first"
    assert output.read(".set_aside/step/combined/a.jpg.1") == b"second"
    output.remove("step/combined_query2/b.jpg")
    output.remove("step/combined_query2/b.jpg")
    with pytest.raises(FileNotFoundError):
        output.read("step/combined_query2/b.jpg")
    output.remove_empty("step")
    assert output.folders() == [".set_aside", "index"]


def test_an_image_is_one_request_and_a_listing_one_for_each_thousand(output, store):
    names = [f"step/combined/{number}.jpg" for number in range(1_001)]
    output.for_each(lambda name: output.writer("run-1").write(name, b"an image's"), names)
    assert store.counts() == {"PUT": 1_001}
    store.begin()
    assert len(output.file_sizes("step")) == 1_001
    assert set(store.counts()) == {"GET"}
    assert store.counts()["GET"] <= 4


def test_credentials_and_files_stay_where_they_are_when_a_storage_travels(output):
    travelled = pickle.dumps(output.writer("run-1"))
    assert b"secret-of-the-test" not in travelled
    output.writer("run-1").write("a", b"1")
    again = pickle.loads(travelled)
    assert (again.output.read("a"), again.run_id, again.output.url) == (b"1", "run-1", output.url)


@pytest.mark.parametrize("fault", ["503", "cut", "cut after"])
def test_what_passes_is_tried_again(output, store, fault):
    store.begin(lambda method, path, number: fault if number <= 2 else None)
    output.writer("run-1").write("step/combined/a.jpg", b"whole")
    assert (store.faults, store.counts()) == (2, {"PUT": 3})
    store.begin(lambda method, path, number: fault if number <= 2 else None)
    assert output.read("step/combined/a.jpg") == b"whole"
    assert store.faults == 2


def test_a_slow_answer_is_waited_for_and_not_requested_again(output, store):
    """Arrow itself would give a request up after three seconds, and ask again."""
    output.writer("run-1").write("step/combined/a.jpg", b"whole")
    store.begin(lambda method, path, number: "slow" if number == 1 else None)
    assert output.read("step/combined/a.jpg") == b"whole"
    assert (store.faults, store.counts()) == (1, {"HEAD": 1, "GET": 1})


def test_what_lasts_is_said_once_waited_for_and_then_told(output, store, monkeypatch, capsys):
    monkeypatch.setattr(retry, "PAUSES", (0.1, 0.2))
    monkeypatch.setattr(remote, "TRIES", 1)
    remote.connect.cache_clear()
    output = open_output(output.url)
    store.begin(lambda method, path, number: "503")
    with pytest.raises(
        OSError, match=r"can't be written: SLOW_DOWN during PutObject operation: Please reduce your"
    ) as told:
        output.writer("run-lasts").write("step/a.jpg", b"1")
    assert told.value.filename == f"{output.url}/step/a.jpg"
    assert store.counts() == {"PUT": 3}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"proxyqueue: {output.url}/step/a.jpg: can't be written: SLOW_DOWN")
    assert said.endswith("; retrying for 0 seconds\n")
    store.begin()
    assert not output.exists()


def test_a_large_file_whose_upload_breaks_is_not_there(output, store, monkeypatch):
    """It goes in pieces, and none of them is to be seen before the last."""
    monkeypatch.setattr(retry, "PAUSES", ())
    monkeypatch.setattr(remote, "TRIES", 1)
    remote.connect.cache_clear()
    output = open_output(output.url)
    store.begin(lambda method, path, number: "503" if "partNumber=2" in path else None)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        output.writer("run-large").write("index/large.parquet", bytes(25_000_000))
    assert store.faults
    store.begin()
    assert output.list_names("index", "*") == []
    output.writer("run-large").write("index/large.parquet", bytes(25_000_000))
    assert [entry.bytes for entry in output.entries("index")] == [25_000_000]


def test_a_store_that_fails_while_parts_are_read_damages_none(output, store, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    remote.connect.cache_clear()
    output = open_output(output.url)
    output.writer("run-1").write("index/model=sdxl/part-a.parquet", part_writer.to_parquet(SCHEMA.empty_table()))
    store.begin(lambda method, path, number: "503" if path.endswith(".parquet") else None)
    with pytest.raises(Refused, match=r"part-a.parquet: can't be read: "):
        read_rows(output, "sdxl", ["query_id"])
    store.begin()
    assert read_rows(output, "sdxl", ["query_id"]).num_rows == 0
    quarantine_damaged(output, "sdxl")
    assert output.list_names("index/model=sdxl", "*") == ["index/model=sdxl/part-a.parquet"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "ftp:// is not known"),
        ("s3:///x", "names no bucket"),
        ("s3://key:word@bucket/x", r"s3://…@bucket/x: no credentials in a URL"),
        ("abfs://container", "abfs://container: "),
        ("s3://bucket//x", r"s3://bucket//x: has '' between two slashes; write the name without that"),
        ("s3://bucket/a//b", "has '' between two slashes"),
        ("s3://bucket/a/b//", "has '' between two slashes"),
        ("s3://bucket/a/../b", r"has '\.\.' between two slashes"),
        ("s3://bucket/exp?2", "2: unknown parameter; after . it can be one of region, endpoint_override, scheme"),
        ("gs://bucket/exp#2", r"gs://bucket/exp#2: would be read as bucket/exp; take a name without # and %"),
        ("gs://bucket/100%25", "would be read as bucket/100%; take a name without # and %"),
    ],
)
def test_other_urls_are_refused(url, message):
    with pytest.raises(Refused, match=message):
        open_output(url)


@pytest.mark.parametrize("name", ["exp#2", "exp%23", "a b ", "ü;x=1&y"])
def test_a_name_is_used_as_it_was_given(store, name, capsys):
    """Another that it could be taken for is not touched."""
    others = [open_output(f"s3://{BUCKET}/names/{other}") for other in ("exp", "a b", "a")]
    for other in others:
        other.writer("run-0").write("runs/run-0.json", b"{}")
    output = open_output(f"s3://{BUCKET}/names/{name}")
    assert output.url == f"s3://{BUCKET}/names/{name}"
    output.writer("run-1").write("runs/run-1.json", b"{}")
    assert remote.read_file(output.display_path("runs/run-1.json")) == b"{}"
    assert main(["clean", "--all", "--yes", "--output_base_path", output.url]) == 0
    assert not output.exists()
    assert all(other.list_names("runs", "*") == ["runs/run-0.json"] for other in others)


@pytest.mark.parametrize("verb", ["status", "verify", "clean --all --yes", "generate --json_file s3://b//x.json"])
def test_what_can_be_no_name_is_refused_in_one_line(store, verb, capsys):
    url = "s3://b//x.json" if "json_file" in verb else "s3://b//x"
    arguments = verb.split() if "json_file" in verb else [*verb.split(), "--output_base_path", url]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{url}: has '' between two slashes; write the name without that\n" in err
    assert err.count("\n") == 1


def test_a_bucket_that_is_not_there_is_refused(store):
    with pytest.raises(Refused, match="bucket nobody does not exist; create it first"):
        open_output("s3://nobody/x").check_writable()


def test_annotations_may_be_remote(output):
    output.writer("run-1").write("test.json", SAMPLE.read_bytes())
    loaded = circo.load(output.display_path("test.json"), "multi_gpt-3.5_opt", 5)
    assert len(loaded.entries) == 6
    with pytest.raises(Refused, match=r"nothing.json: no such file; name the annotations with --json_file"):
        circo.load(output.display_path("nothing.json"), "multi_gpt-3.5_opt", 5)


STEPS = ["--max_inference_steps", "4", "--save_steps", "1", "4"]
FLAGS = ["--model_path", "tiny", *STEPS, "--img_per_prompt", "2", "--num_prompts", "2"]


@pytest.mark.slow
def test_a_run_into_a_store_that_has_faults(store, tmp_path, capsys):
    """Generated, resumed, verified, compacted and cleaned; the same bytes as in a local run."""
    url = f"s3://{BUCKET}/whole/run"
    output = open_output(url)
    output.writer("run-1").write("asked/test.json", SAMPLE.read_bytes())
    command = ["generate", "--json_file", f"{url}/asked/test.json", *FLAGS, "--output_base_path"]
    here = run_cli(*command[:2], str(SAMPLE), *FLAGS, "--output_base_path", "out", cwd=tmp_path, program=PACED)
    assert here.returncode == 0, here.stderr
    expected = read_tree(tmp_path / "out")

    faults = {3: "503", 5: "cut", 7: "cut after"}
    store.begin(lambda method, path, number: faults.get(number % 11) if method == "PUT" else None)
    first = run_cli(*command, url, cwd=tmp_path, program=PACED, **store.environment)
    assert first.returncode == 0, first.stderr
    assert store.faults >= 10
    assert "secret-of-the-test" not in first.stdout + first.stderr
    store.begin()
    assert _images(output) == expected

    output.remove("proxy_images_sdxl_step1/combined/combined_100102_1.jpg")
    for name in output.list_names("proxy_images_sdxl_step4/combined", "*_0.jpg"):
        output.remove(name)
    again = run_cli(*command, url, cwd=tmp_path, program=PACED, **store.environment)
    assert again.returncode == 0, again.stderr
    assert "to generate" in again.stdout
    assert _images(output) == expected
    nothing = run_cli(*command, url, cwd=tmp_path, program=PACED, **store.environment)
    assert f"nothing to generate: all {len(expected)} requested images exist" in nothing.stdout

    for verb, code in (("verify --deep", 0), ("compact", 0), ("verify", 0)):
        assert main([*verb.split(), "--output_base_path", url]) == code, capsys.readouterr()
    assert len(output.list_names("index/model=sdxl", "*.parquet")) == 1

    output.writer("run-1").write("proxy_images_sdxl_step4/combined/stray.jpg", b"no image")
    capsys.readouterr()
    assert main(["verify", "--repair", "--format", "json", "--output_base_path", url]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"stray file": 1}
    assert main(["clean", "--all", "--yes", "--output_base_path", url]) == 0
    assert sorted(entry.name for entry in output.files("")) == [
        ".set_aside/proxy_images_sdxl_step4/combined/stray.jpg", "asked/test.json",
    ]  # fmt: skip


def _images(output) -> dict[str, bytes]:
    """Every image by its path; nothing else is in a combined folder."""
    names = [entry.name for entry in output.files("") if Path(entry.name).parent.name.startswith("combined")]
    return {name: output.read(name) for name in names}


def test_what_asks_and_shows_reads_a_store_as_it_reads_a_folder(output, tmp_path, capsys):
    """query, status, gallery and export of the same output, here and there."""
    here = tmp_path / "here"
    write_output(here, range(3))
    for path in (path for path in here.rglob("*") if path.is_file()):
        output.writer("run-1").write(path.relative_to(here).as_posix(), path.read_bytes())
    output.remove("proxy_images_sdxl_step4/combined/combined_r#1_0.jpg")
    (here / "proxy_images_sdxl_step4/combined/combined_r#1_0.jpg").unlink()
    answers = []
    for number, url in enumerate((str(here), output.url)):
        asked = ["--output_base_path", url]
        capsys.readouterr()
        assert main(["query", *asked, "--format", "json", "SELECT * FROM images ORDER BY ALL"]) == 0
        assert main(["status", *asked, "--format", "json"]) == 0
        assert main(["export", *asked, "--format", "ipcir"]) == 1
        answers.append(capsys.readouterr().out.replace(url, "OUTPUT"))
        pages, table = tmp_path / f"pages{number}", tmp_path / f"table{number}"
        assert main(["gallery", *asked, "--gallery_path", str(pages)]) == 0
        assert main(["export", *asked, "--format", "trajectories", "--export_path", str(table)]) == 0
        assert main(["export", *asked, "--format", "imagefolder"]) == 0
        assert main(["gallery", *asked, "--contact_sheet", str(tmp_path / f"{number}.png")]) == 0
    assert answers[0] == answers[1]
    assert '"done": 5' in answers[0]
    for kind in ("pages*/thumbnails/**/*.jpg", "table*/*", "*.png"):
        files = sorted(tmp_path.glob(kind))
        contents = [path.read_bytes() for path in files]
        half = len(files) // 2
        assert half
        assert contents[:half] == contents[half:], kind
    local, stored = (here / "proxy_images_sdxl_step1/metadata.parquet").read_bytes(), "proxy_images_sdxl_step1"
    assert output.read(f"{stored}/metadata.parquet") == local
    assert main(["gallery", "--output_base_path", output.url]) == 2
    assert "--gallery_path: name a folder of this machine" in capsys.readouterr().err


def test_features_and_the_images_of_a_gallery_lie_in_a_store(output, capsys):
    """Two images with their checksums and bytes; a part that is written, read and damaged."""
    files = output.writer("run-1")
    files.write("gallery/a.jpg", b"a")
    files.write("gallery/b/c.png", b"c")
    gallery = Gallery(f"{output.url}/gallery")
    contents = {image["name"]: read_image([output, gallery.place], image) for image in gallery.read().to_pylist()}
    assert contents == {"a": b"a", "c": b"c"}
    recipe = {"encoder": "owner/clip", "revision": "c0", "preprocessing": "targetpad"}
    for run_id in ("run-1", "run-2"):
        with parts.FeaturesWriter(output.writer(run_id), "owner/clip", recipe, 2) as part:
            part.add(pa.Table.from_pylist([{**recipe, "name": run_id, "vector": [1, 2], "status": "ok"}], part.schema))
    features = parts.FeatureParts.of(output, "owner/clip")
    assert parts.encoders_of(output) == ["owner--clip"]
    assert features.read(["name", "vector"]).to_pylist()[1] == {"name": "run-2", "vector": [1.0, 2.0]}
    files.write(features.names[0], b"PAR1")
    damaged = parts.FeatureParts.of(output, "owner/clip")
    assert damaged.read(["name"]).to_pylist() == [{"name": "run-2"}]
    assert "a damaged part of the features" in capsys.readouterr().err


@pytest.mark.slow
def test_features_are_encoded_from_a_store_into_a_store(output, tmp_path):
    for number in range(20):
        output.writer("run-1").write(f"gallery/{number}.jpg", str(number).encode())
    save_config(tmp_path / "clip")
    flags = ["--encoder", str(tmp_path / "clip"), "--device", "cpu", "--num_workers", "1", "--batch_size", "8"]
    places = ["--images", f"{output.url}/gallery", "--output_base_path", f"{output.url}/out"]
    done = run_cli("features", *flags, *places, program=PACED, SECONDS_PER_ITEM="0")
    assert done.returncode == 0, done.stderr
    rows = parts.FeatureParts.of(open_output(f"{output.url}/out"), str(tmp_path / "clip")).read().to_pylist()
    expected = {str(number): vector_of(str(number).encode()).tolist() for number in range(20)}
    assert {row["name"]: row["vector"] for row in rows} == expected
    again = run_cli("features", *flags, *places, program=PACED)
    assert "nothing to encode: all 20 requested vectors exist" in again.stdout
