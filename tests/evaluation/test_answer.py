"""The answer: each model's scores in a column, and the first step that is not shown to differ from the last."""

import io

import pytest
from PIL import Image

from ray_app.evaluation import answer

SCORES = {"xt": {1: 2.0, 4: 30.0, 32: 60.0}, "x0": {1: 55.0, 4: 61.0, 32: 60.0}}
P = {"xt": {1: 0.001, 4: 0.01}, "x0": {1: 0.2, 4: 1.0}}


def row(**values):
    fixed = {"model": "sdxl", "snapshot": "xt", "step": None, "method": "proxy", "control": "none", "metric": "mAP@10",
             "compared_with": None, "value": 0.0, "low": -1.0, "high": 1.0, "n": 40, "p_holm": None}  # fmt: skip
    return {**fixed, **values}


def rows(p=P):
    made = [row(method="text", value=70.0), row(method="text", metric="Recall@5"), row(control="noise", step=4)]
    for snapshot, steps in SCORES.items():
        made += [row(snapshot=snapshot, step=step, value=value) for step, value in steps.items()]
        for step, value in p[snapshot].items():
            difference = steps[step] - steps[32]
            made.append(row(snapshot=snapshot, step=step, compared_with="last step", value=difference, p_holm=value))
    return made


def test_the_table_has_a_column_per_model_and_kind_of_snapshot():
    scores = answer.Scores(rows())
    assert scores.text is not None
    assert scores.text["value"] == 70
    assert answer.table(scores) == [
        ["step", "sdxl xt", "sdxl x0"],
        ["1", "2.0", "55.0"],
        ["4", "30.0", "61.0"],
        ["32", "60.0", "60.0"],
    ]


def test_sentences_name_the_first_step_from_which_on_no_difference_is_shown():
    late, early = answer.sentences(answer.Scores(rows()))
    assert (
        late == "sdxl xt: step 4 still differs from step 32 (-30.0 at step 4, 95 %: -1.0 to 1.0, p = 0.01 after Holm)"
    )
    assert early == (
        "sdxl x0: from step 1 on no difference to step 32 is shown (-5.0 at step 1, 95 %: -1.0 to 1.0, p = 0.20 after"
        " Holm)"
    )


def test_a_step_is_not_enough_if_a_later_one_differs():
    scores = answer.Scores(rows({"xt": {1: 0.5, 4: 0.01}, "x0": {1: 0.001, 4: 0.9}}))
    assert scores.enough("sdxl", "xt", "proxy") is None
    found = scores.enough("sdxl", "x0", "proxy")
    assert found is not None
    assert found["step"] == 4


@pytest.mark.parametrize("note", ["", "scores 1234"])
def test_the_plot_keeps_its_note(note):
    with Image.open(io.BytesIO(answer.plot(answer.Scores(rows()), note))) as plot:
        assert plot.format == "PNG"
        assert plot.info.get("Description", "") == note
