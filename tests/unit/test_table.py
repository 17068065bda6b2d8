"""The table of runs that measured distances by several attacks; tests/integration/test_report.py
has the others."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.summary import format_summary
from pipeline.reports import figures, runs, sweep_figure, table, table_formats
from pipeline.reports.table import RhoByAttack, TableRow
from tests.helpers.stored_results import evaluation, evaluation_by_two, finetuning

HEAD = ["network", "method", *table_formats.COLUMNS]
OLD = TableRow("Net", "Reference", 0.94, 0.1, (0.68, None, 0.02), 0.3)
ALONE = OLD._replace(method="Short", by_attack=RhoByAttack({"deepfool": 0.1}))
SEVERAL = TableRow(
    *("Net", "Deep Defense", 0.958, 0.2, (0.89, 0.77, 0.5), 0.3),
    by_attack=RhoByAttack({"deepfool": 0.25, "adv_lib.attacks:fmn": 0.2}, 0.2, 1.25),
)


def test_a_column_for_each_attack_the_best_and_their_ratio() -> None:
    lines = table_formats.markdown([OLD, ALONE, SEVERAL]).splitlines()
    assert lines == [
        "| Network | Method | Accuracy | rho2 | rho2 deepfool | rho2 adv_lib.attacks:fmn "
        "| rho2 best | DeepFool / best | @0.2 | @0.5 | @1 |",
        "| --- | --- |" + " ---: |" * 9,
        "| Net | Reference | 94.00 | 1.00e-1 |  |  |  |  | 68.00 |  | 2.00 |",
        "|  | Short | 94.00 | 1.00e-1 | 1.00e-1 |  |  |  | 68.00 |  | 2.00 |",
        "|  | Deep Defense | 95.80 | 2.00e-1 | 2.50e-1 | 2.00e-1 | 2.00e-1 | 1.250 "
        "| 89.00 | 77.00 | 50.00 |",
    ]
    latex = table_formats.latex([OLD, SEVERAL])
    assert r"\begin{tabular}{llrrrrrrrrr}" in latex
    assert r"& $\rho_2$ & $\rho_2$ deepfool & $\rho_2$ adv\_lib.attacks:fmn &" in latex
    assert r"& $2.00 \times 10^{-1}$ & 1.250 & 89.00 & 77.00 & 50.00 \\" in latex
    assert r"Reference & 94.00 & $1.00 \times 10^{-1}$ &  &  &  &  & 68.00 &  & 2.00 \\" in latex
    head, *rows = csv.reader(io.StringIO(table_formats.as_csv([OLD, SEVERAL])))
    more = ["rho2_deepfool", "rho2_adv_lib.attacks:fmn", "rho2_best", "deepfool_over_best"]
    assert head == [*HEAD, *more]
    assert rows[0][len(HEAD) :] == ["", "", "", ""]
    assert rows[1][len(HEAD) :] == ["0.25", "0.2", "0.2", "1.25"]


def test_the_ratio_has_the_name_of_its_norm() -> None:
    row = SEVERAL._replace(rho_name="rho_inf", bounds=(0.1, 0.2))
    assert "| Accuracy | rho_inf | rho_inf deepfool |" in table_formats.markdown([row])
    assert r"& $\rho_{\infty}$ & $\rho_{\infty}$ deepfool &" in table_formats.latex([row])
    head = next(csv.reader(io.StringIO(table_formats.as_csv([row]))))
    names = ["rho_inf", "rho_inf_deepfool", "rho_inf_best", "rho_inf_lower", "rho_inf_upper"]
    assert set(names) < set(head)
    assert not [name for name in head if name.startswith("rho2")]
    assert "| Accuracy | rho | @0.2 |" in table_formats.markdown(
        [OLD, OLD._replace(rho_name="rho_inf")]
    )


def test_labels_with_special_characters() -> None:
    row = OLD._replace(network="a|b", method=r"50 %^~\x")
    assert table_formats.markdown([row]).splitlines()[2].startswith(r"| a\|b | 50 %^~\x | 94.00 |")
    escaped = r"a|b & 50 \%\textasciicircum{}\textasciitilde{}\textbackslash{}x & 94.00 &"
    assert escaped in table_formats.latex([row])


def test_without_several_attacks_the_columns_are_the_papers() -> None:
    for rows in ([OLD], [ALONE], [OLD, ALONE]):
        lines = table_formats.markdown(rows).splitlines()
        assert lines[0] == "| Network | Method | Accuracy | rho2 | @0.2 | @0.5 | @1 |"
        assert lines[2] == f"| Net | {rows[0].method} | 94.00 | 1.00e-1 | 68.00 |  | 2.00 |"
        assert r"\begin{tabular}{llrrrrr}" in table_formats.latex(rows)
        assert table_formats.as_csv(rows).splitlines()[0] == ",".join(HEAD)


def test_columns_for_both_ends_of_the_interval() -> None:
    rows = [OLD, ALONE._replace(bounds=(0.03, 0.09))]
    lines = table_formats.markdown(rows).splitlines()
    assert lines[0].endswith("| @1 | rho2 lower | rho2 upper |")
    assert lines[2].endswith("| 2.00 |  |  |")
    assert lines[3].endswith("| 2.00 | 3.00e-2 | 9.00e-2 |")
    assert r"@1.0\,$\epsilon_\mathrm{ref}$ & $\rho_2$ lower & $\rho_2$ upper \\" in (
        table_formats.latex(rows)
    )
    head, *lines = table_formats.as_csv(rows).splitlines()
    assert head == ",".join([*HEAD, "rho2_lower", "rho2_upper"])
    assert lines[1].endswith(",0.3,0.03,0.09")


def test_rows_take_the_ratios_from_the_summaries(tmp_path: Path) -> None:
    by_two = evaluation_by_two(tmp_path / "two", 1.0)
    by_deepfool = evaluation(tmp_path / "one", 1.0)
    several, alone = table.rows_of([runs.read(by_two), runs.read(by_deepfool)])
    ratio = 0.01 * 1.1 ** np.arange(40) / 2
    is_even = np.arange(40) % 2 == 0
    deepfool = np.where(is_even, 1.25, 1) * ratio
    ddn = np.delete(np.where(is_even, 1, 2) * ratio, 3)
    assert several.by_attack == RhoByAttack(
        {"deepfool": pytest.approx(deepfool.mean()), "ddn": pytest.approx(ddn.mean())},
        best=pytest.approx(ratio.mean()),
        deepfool_over_best=pytest.approx(deepfool.mean() / ratio.mean()),
    )
    assert several.rho == several.by_attack.best
    assert alone.by_attack == RhoByAttack({"deepfool": alone.rho})


def test_a_mean_over_no_image_is_an_empty_cell(tmp_path: Path) -> None:
    evaluation(tmp_path / "run", 1.0, stuck=[True] * 40, flipped=[False] * 40)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rho2"] is summary["ratio_median"] is None
    run = runs.read(tmp_path / "run")
    rows = table.rows_of([run])
    assert rows[0].rho is None
    assert next(csv.DictReader(io.StringIO(table_formats.as_csv(rows))))["rho2"] == ""
    assert table_formats.markdown(rows).splitlines()[2].split("|")[4].strip() == ""
    assert "rho2 - over 40 images" in format_summary(run.evaluation)
    with pytest.raises(UserError, match=r"no image of .*run has a ratio"):
        figures.ratios([run])
    tuned = finetuning(tmp_path / "tuned", 1.0, 1.0, 0.9, None)
    assert runs.read(tuned).finetuning.after.rho is None
    figures.epochs([runs.read(tuned)])
    other = finetuning(tmp_path / "other", 1.0, 2.0, 0.9, 0.2)
    sweep_figure.sweep([runs.read(tuned), runs.read(other)], "regularizer.lam", "regularizer.c")


def test_rows_of_a_finetuning_take_them_too(tmp_path: Path) -> None:
    folder = finetuning(tmp_path / "ft", 15, 25, 0.97, 0.2)
    assert [row.by_attack.rho for row in table.rows_of([runs.read(folder)])] == [
        {"deepfool": 0.1},
        {"deepfool": 0.2},
    ]
    path = folder / "summary.json"
    values = json.loads(path.read_text())
    by_two = json.loads((evaluation_by_two(tmp_path / "two", 1.0) / "summary.json").read_text())
    values["definition"] = by_two["definition"]
    values["after"]["diagnostics"] = by_two["diagnostics"]
    path.write_text(json.dumps(values))
    before, after = table.rows_of([runs.read(folder)])
    assert before.by_attack == RhoByAttack({})
    assert list(after.by_attack.rho) == ["deepfool", "ddn"]
    assert after.by_attack.best == by_two["diagnostics"]["best"]
