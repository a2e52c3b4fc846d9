"""Official scores of DCASE's task 2, number by number, and submission files, line by line."""

import csv
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sance_audio import challenge
from sance_audio.challenge import Figures, Section, figures, official, submit

NORMAL = {"source": [1.0, 2.0, 4.0, 6.0], "target": [3.0, 5.0, 7.0, 9.0]}
ODD = {"source": [5.5, 8.0], "target": [2.5, 10.0]}


def clips():
    """odd, domains and scores of the clips above."""
    rows = [(False, d, s) for d in NORMAL for s in NORMAL[d]]
    rows += [(True, d, s) for d in ODD for s in ODD[d]]
    odd, domains, scores = zip(*rows, strict=True)
    return np.array(odd), list(domains), np.array(scores)


def standardised(area: float) -> float:
    """McClish's, of an area below false-alarm rates of .1: chance has .005, the best .1."""
    return (1 + (area - 0.005) / (0.1 - 0.005)) / 2


def test_2020_by_hand():
    found = figures(2020, *clips())
    # Normals 1 2 3 4 5 6 7 9. Odd clips: 5.5 is above 5 of them, 8 above 7, 2.5 above 2, 10 all.
    assert found.known["AUC"] == pytest.approx((5 + 7 + 2 + 8) / (4 * 8))
    # Up to a false-alarm rate of .1 < 1/8 only 10, one in four, is above the oddest normal, 9.
    assert found.known["pAUC"] == pytest.approx(standardised(0.1 * 1 / 4))
    assert found.missing == {}


def test_2021_by_hand():
    known = figures(2021, *clips()).known
    # Source: 5.5 above 1 2 4, 8 above 1 2 4 6. Target: 2.5 above none, 10 above 3 5 7 9.
    assert known["source AUC"] == pytest.approx((3 + 4) / (2 * 4))
    assert known["target AUC"] == pytest.approx((0 + 4) / (2 * 4))
    # One of two odd clips is above the domain's oddest normal (8 > 6, 10 > 9).
    assert known["source pAUC"] == pytest.approx(standardised(0.1 * 1 / 2))
    assert known["target pAUC"] == pytest.approx(standardised(0.1 * 1 / 2))
    assert len(known) == 4


@pytest.mark.parametrize("year", range(2022, 2027))
def test_2022_and_later_by_hand(year):
    known = figures(year, *clips()).known
    # Odd clips of both domains, 5.5 8 2.5 10, against source normals 1 2 4 6: 3 + 4 + 2 + 4.
    assert known["source AUC"] == pytest.approx((3 + 4 + 2 + 4) / (4 * 4))
    # Against target normals 3 5 7 9: 2 + 3 + 0 + 4.
    assert known["target AUC"] == pytest.approx((2 + 3 + 0 + 4) / (4 * 4))
    assert known["pAUC"] == pytest.approx(standardised(0.1 * 1 / 4))
    assert len(known) == 3


def test_figures_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    odd = rng.random(400) < 0.5
    domains = rng.choice(["source", "target"], 400)
    scores = np.round(rng.normal(size=400) + odd, 1)  # with ties
    ours = {year: figures(year, odd, list(domains), scores).known for year in challenge.YEARS}
    assert ours[2020]["AUC"] == pytest.approx(roc_auc_score(odd, scores))
    assert ours[2020]["pAUC"] == pytest.approx(roc_auc_score(odd, scores, max_fpr=0.1))
    for domain in ("source", "target"):
        here = domains == domain
        pair = odd[here], scores[here]
        assert ours[2021][f"{domain} AUC"] == pytest.approx(roc_auc_score(*pair))
        assert ours[2021][f"{domain} pAUC"] == pytest.approx(roc_auc_score(*pair, max_fpr=0.1))
        pair = odd[here | odd], scores[here | odd]
        assert ours[2026][f"{domain} AUC"] == pytest.approx(roc_auc_score(*pair))
    assert ours[2026]["pAUC"] == pytest.approx(roc_auc_score(odd, scores, max_fpr=0.1))


def of(*values: float) -> Figures:
    return Figures({str(i): v for i, v in enumerate(values)}, {})


def test_2020_is_the_mean_over_ids_then_machines():
    machines = {"fan": [of(0.8, 0.6), of(0.6, 0.6)], "ToyCar": [of(0.5, 0.5)]}
    # fan: (.8 + .6 + .6 + .6) / 4 = .65; ToyCar: .5; each machine weighs the same.
    assert official(2020, machines) == pytest.approx((0.65 + 0.5) / 2)


@pytest.mark.parametrize("year", range(2021, 2027))
def test_later_scores_are_harmonic_over_everything(year):
    machines = {"fan": [of(0.5, 1.0), of(0.25, 1.0)], "ToyCar": [of(0.5, 0.5)]}
    # 1 / mean of 2 1 4 1 2 2, which is 12 / 6.
    assert official(year, machines) == pytest.approx(0.5)


PUBLISHED = {
    2024: (
        "0.7912 0.65 0.6916 0.7658 0.8602 0.6224 0.7504 0.6596 0.7070",
        "0.4796 0.4824 0.5374 0.5266 0.4388 0.4598 0.6948 0.4152 0.6352",
        "0.4942105263157895 0.5547368421052632 0.5010526315789474 0.5 0.5021052631578947 "
        "0.5163157894736842 0.5273684210526316 0.511578947368421 0.5557894736842105",
        0.5650830191796572,
    ),
    2026: (
        "0.7126 0.5902 0.6484 0.6948 0.6714",
        "0.468 0.6434 0.6142 0.8838 0.4402",
        "0.5510526315789473 0.5978947368421053 0.5810526315789474 0.6178947368421053 "
        "0.5089473684210526",
        0.5980289616592438,
    ),
}
"""The autoencoder, machine by machine: AUC of source and target, pAUC; the official score. From
the READMEs of the years' evaluators."""


@pytest.mark.parametrize("year", PUBLISHED)
def test_published_official_scores(year):
    *columns, score = PUBLISHED[year]
    rows = zip(*(map(float, column.split()) for column in columns), strict=True)
    machines = {str(i): [of(*row)] for i, row in enumerate(rows)}
    assert official(year, machines) == pytest.approx(score, abs=1e-12)


def test_a_figure_of_zero_counts_as_the_rounding_unit():
    epsilon = sys.float_info.epsilon
    assert official(2022, {"fan": [of(0.0, 0.5)]}) == pytest.approx(2 / (1 / epsilon + 2))


def test_what_is_absent_is_said():
    odd, domains, scores = clips()
    here = np.array(domains) == "source"
    source = odd[here], [d for d in domains if d == "source"], scores[here]
    found = figures(2022, *source)
    assert set(found.known) == {"source AUC", "pAUC"}
    assert found.missing == {
        "target AUC": "no target AUC: among the clips that it compares there is no normal one"
    }
    found = figures(2021, *source)
    assert found.missing["target pAUC"].endswith("there is no normal and no odd one")
    none = figures(2020, odd[:0], [], scores[:0])
    assert set(none.missing) == {"AUC", "pAUC"}
    assert official(2020, {"fan": [none]}) is None
    with pytest.raises(ValueError, match="a domain is source or target in 2023, found ''"):
        figures(2023, odd, [""] * len(odd), scores)
    for year in (2019, 2027):
        with pytest.raises(ValueError, match=f"2020 to 2026, found {year}"):
            figures(year, *clips())


FILES = ["b.wav", "a.wav", "c.wav"]


def test_submission_line_by_line(tmp_path):
    one = Section("fan", "00", FILES, ["source", "target", "target"], [1.5, -2.0, 0.1], 0.1)
    (score, decision) = submit(tmp_path, 2023, [one])
    assert score == tmp_path / "anomaly_score_fan_section_00_test.csv"
    assert decision == tmp_path / "decision_result_fan_section_00_test.csv"
    assert score.read_text() == "a.wav,-2.0\nb.wav,1.5\nc.wav,0.1\n"
    assert decision.read_text() == "a.wav,0\nb.wav,1\nc.wav,0\n"


def test_a_name_with_commas_is_one_cell(tmp_path):
    """Attributes in names are anybody's; evaluators read with a CSV reader."""
    names = ["a,b.wav", 'c"d.wav', "e\udcff.wav"]
    one = Section("fan", "00", names, ["source"] * 3, [1.0, 2.0, 3.0], 1.5)
    for path in submit(tmp_path, 2023, [one]):
        with path.open(newline="", errors="surrogateescape") as file:
            assert [row[0] for row in csv.reader(file)] == names


def test_submission_of_2020_has_scores_only(tmp_path):
    (path,) = submit(tmp_path, 2020, [Section("ToyCar", "01", FILES, [""] * 3, [1, 2, 3], 0)])
    assert path.name == "anomaly_score_ToyCar_id_01.csv"
    assert path.read_text() == "a.wav,2.0\nb.wav,1.0\nc.wav,3.0\n"


def test_submission_of_2021_is_by_domain(tmp_path):
    one = Section("pump", "03", FILES, ["source", "target", "target"], [1.5, -2.0, 0.1], 0.0)
    paths = submit(tmp_path, 2021, [one])
    text = {path.name: path.read_text() for path in paths}
    assert text == {
        "anomaly_score_pump_section_03_source_test.csv": "b.wav,1.5\n",
        "decision_result_pump_section_03_source_test.csv": "b.wav,1\n",
        "anomaly_score_pump_section_03_target_test.csv": "a.wav,-2.0\nc.wav,0.1\n",
        "decision_result_pump_section_03_target_test.csv": "a.wav,0\nc.wav,1\n",
    }


def test_a_submission_that_no_evaluator_takes_is_refused(tmp_path):
    about = ("fan", "00", FILES, ["source"] * 3)
    with pytest.raises(ValueError, match="fan, section 00: a score is NaN"):
        submit(tmp_path, 2023, [Section(*about, [1.0, np.nan, 2.0], 0.0)])
    with pytest.raises(ValueError, match="3 clips, 1 names"):
        submit(tmp_path, 2023, [Section("fan", "00", ["a"] * 3, ["source"] * 3, [1, 2, 3], 0.0)])
    assert not list(tmp_path.iterdir())
