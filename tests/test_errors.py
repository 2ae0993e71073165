"""Refusals: one line, their kind and fields, also across processes."""

import errno
import pickle

import pytest

from ray_app import errors
from ray_app.annotations import circo
from ray_app.generation.options import Generate


def test_a_refusal_is_one_line_whatever_names_are_in_it():
    assert str(errors.InputRefused("a\nb: no such file")) == "a b: no such file"


def test_trouble_that_passes_ends_with_what_to_do():
    told = errors.write_failure(OSError(errno.ENOSPC, "No space left on device", "/out/a"))
    assert (told.transient, told.path) == (True, "/out/a")
    assert str(told) == f"/out/a: No space left on device; {errors.RERUN}"


def test_a_refusal_keeps_its_fields_on_the_way_from_a_worker():
    travelled = pickle.loads(pickle.dumps(errors.OutputRefused("x", path="/out", query=3, transient=True)))
    assert (type(travelled), travelled.path, travelled.query) == (errors.OutputRefused, "/out", 3)
    assert str(travelled).endswith(errors.RERUN)


@pytest.mark.parametrize(("number", "passes"), [(errno.ENOSPC, True), (errno.EROFS, False), (errno.EACCES, False)])
def test_what_passes_by_itself(number, passes):
    assert errors.is_transient(OSError(number, "")) is passes


def test_the_flag_and_the_file_that_are_to_blame_are_named(tmp_path):
    with pytest.raises(errors.InputRefused) as raised:
        Generate(limit=0).check_flags()
    assert raised.value.flag == "limit"
    with pytest.raises(errors.InputRefused) as raised:
        circo.load(str(tmp_path / "none.json"), "prompts", 1)
    assert raised.value.path == str(tmp_path / "none.json")
