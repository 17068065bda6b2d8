"""tools/board.py: which evaluations it finds, its pages, and that names cannot become HTML."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import AttackConfig
from pipeline.reports import evaluation_folders as folders
from pipeline.reports import runs
from pipeline.reports.evaluation_folders import EvaluationFolder
from tests.helpers.boards import SCRIPT, Page, copy_evaluation, csv_rows, make_board
from tests.helpers.in_process import call
from tests.helpers.stored_results import evaluation, evaluation_by_two, finetuning, shard

NO_SHEETS = "--no-sheets"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation by DeepFool in one/, and one by DeepFool and DDN in two/."""
    folder = tmp_path_factory.mktemp("evaluations")
    evaluation(folder / "one", 1.0)
    evaluation_by_two(folder / "two", 1.0)
    return folder


def test_numbers_are_those_of_the_evaluation(source: Path, tmp_path: Path) -> None:
    evaluation_by_two(tmp_path / "runs" / "other", 2.0)
    copy_evaluation(source / "two", tmp_path / "runs" / "first")
    text = make_board(tmp_path / "out", tmp_path / "runs", NO_SHEETS)
    index = tmp_path / "out" / "index.html"
    assert text.splitlines() == [
        f"2 evaluations on 1 page: {index}, {tmp_path / 'out' / 'board.csv'}; "
        f"open {index.as_uri()} in a browser"
    ]
    rows = {row["name"]: row for row in csv_rows(tmp_path / "out")}
    assert list(rows) == ["first", "other"]
    for name, row in rows.items():
        statistics = runs.read(tmp_path / "runs" / name).evaluation.statistics
        diagnostics = statistics.diagnostics
        assert float(row["accuracy"]) == statistics.accuracy
        assert float(row["rho2_best"]) == diagnostics.best
        assert float(row["rho2_deepfool"]) == diagnostics.methods["deepfool"]["mean"]
        assert float(row["rho2_ddn"]) == diagnostics.methods["ddn"]["mean"]
        assert float(row["num_queries"]) == 9
        assert row["folder"] == str(tmp_path / "runs" / name)
    assert float(rows["other"]["rho2_best"]) == pytest.approx(2 * float(rows["first"]["rho2_best"]))
    page = Page(tmp_path / "out" / "protocol-1.html")
    assert "../runs/first/" in page.links
    assert (tmp_path / "out" / "../runs/first").is_dir()
    data = json.loads(page.data)
    assert data["methods"] == ["best", "deepfool", "ddn"]
    curve = data["rows"][0]["curves"]["absolute"]
    assert curve["accuracy"]["best"][0] == statistics.accuracy
    assert curve["budget"] == sorted(curve["budget"])
    assert sum(data["rows"][0]["shares"]["ddn"]) == pytest.approx(1, abs=1e-4)


def test_an_evaluation_without_distances(tmp_path: Path) -> None:
    evaluation(
        *(tmp_path / "runs" / "stuck", 1.0),
        stuck=[True] * 40,
        flipped=[False] * 40,
        queries=[9] * 40,
    )
    make_board(tmp_path / "out", tmp_path / "runs", NO_SHEETS)
    (row,) = csv_rows(tmp_path / "out")
    assert (row["rho2_best"], row["num_unflipped"]) == ("", "40")
    assert "none of 40 images has a distance" in row["notes"]


def test_a_page_for_each_protocol_and_set_of_images(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    copy_evaluation(source / "one", root / "a")
    copy_evaluation(source / "one", root / "b", model="other net")
    attack = AttackConfig(max_iterations=50)
    evaluation(root / "longer", 1.0, attack)
    other_input = runs.read(root / "a").evaluation.identity.to_dict()["input"] | {"crop": 9}
    copy_evaluation(source / "one", root / "cropped", input=other_input)
    copy_evaluation(source / "one", root / "elsewhere", index="2", num_images=30)
    make_board(tmp_path / "out", root, NO_SHEETS)
    pages = {row["name"]: row["page"] for row in csv_rows(tmp_path / "out")}
    # Each page's names are the shortest that distinguish its rows.
    assert pages == {"a": "1", "b": "1", "cropped": "1", "elsewhere": "2", "longer": "3"}
    first, third = (Page(tmp_path / "out" / f"protocol-{n}.html") for n in (1, 3))
    assert "max_iterations: 5 -> 50" in first.texts
    assert "index: 1 -> 2" in first.texts
    assert "num_images: 40 -> 30" in first.texts
    assert "max_iterations: 50 -> 5" in third.texts
    assert any("is 8, 9. Distances" in text for text in first.texts)
    index = Page(tmp_path / "out" / "index.html")
    assert "max_iterations: 5 -> 50" in index.texts
    assert index.links == ["board.csv", *(f"protocol-{n}.html" for n in (1, 2, 3))]
    # Pages of an earlier board are removed.
    make_board(tmp_path / "out", root / "a", NO_SHEETS)
    assert [path.name for path in (tmp_path / "out").glob("protocol-*")] == ["protocol-1.html"]


def test_exports_have_the_name_of_their_folder(source: Path, tmp_path: Path) -> None:
    export = tmp_path / "exports" / "r18"
    copy_evaluation(source / "one", export / "evaluations" / "one")
    shutil.rmtree(export / "evaluations" / "one" / "results")
    for name in folders.EXPORT_FILES:
        (export / name).touch()
    copy_evaluation(source / "one", tmp_path / "runs" / "seed0" / "evaluation")
    finetuning(tmp_path / "runs" / "tuned", 15, 25, 0.97, 0.2)  # no row, and no mistake
    make_board(tmp_path / "out", tmp_path, NO_SHEETS)
    rows = {row["name"]: row["folder"] for row in csv_rows(tmp_path / "out")}
    assert rows == {
        "r18": str(export / "evaluations" / "one"),
        "runs/seed0/evaluation": str(tmp_path / "runs" / "seed0" / "evaluation"),
    }


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/r/a"], ["a"]),
        (["/r/a/x", "/r/b/x"], ["a", "b"]),
        (["/r/s0/a/x", "/r/s1/a/x", "/r/s1/b/x"], ["s0/a", "s1/a", "s1/b"]),
        (["/r/a", "/r/a/before"], ["a", "before"]),
        (["/r/a", "/q/a"], ["r", "q"]),
    ],
)
def test_shortest_names(paths: list[str], expected: list[str]) -> None:
    assert folders.names([EvaluationFolder(Path(path)) for path in paths]) == expected


def test_several_evaluations_of_an_export_are_distinguished() -> None:
    export = Path("/e/r18")
    two = [EvaluationFolder(export / "evaluations" / name, export) for name in ("all", "part")]
    assert folders.names(two) == ["all", "part"]
    assert folders.shown_folders(two) == [evaluation.folder for evaluation in two]
    other = EvaluationFolder(Path("/e/r50/evaluations/all"), Path("/e/r50"))
    assert folders.shown_folders([*two, other])[2] == Path("/e/r50")


def test_equal_names_of_exports_are_distinguished() -> None:
    exports = [EvaluationFolder(Path(f"/e/{n}/r/evaluation"), Path(f"/e/{n}/r")) for n in "ab"]
    assert folders.names(exports) == ["a", "b"]
    run = EvaluationFolder(Path("/e/runs/x"))
    assert folders.names([*exports, run]) == ["a/r", "b/r", "runs/x"]


def test_names_cannot_become_html(source: Path, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    copy_evaluation(
        source / "one", tmp_path / attack, model="</script><img src=x onerror=alert(2)>"
    )
    copy_evaluation(source / "one", tmp_path / "plain & simple")
    damaged = tmp_path / "<b>" / "summary.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    out = tmp_path / "out"
    assert call(SCRIPT, tmp_path, "--out", out, NO_SHEETS, "--title", f"{attack}&amp;").code == 0
    page = Page(out / "protocol-1.html")
    # The data and the script of the board, and no other.
    assert page.scripts == [{"type": "application/json", "id": "data"}, {}]
    assert page.images == []
    assert attack in page.texts
    assert f"{attack}&amp;" in page.texts
    assert {row["name"] for row in json.loads(page.data)["rows"]} == {attack, "plain & simple"}
    link = next(link for link in page.links if "alert" in link)
    assert link == "../%3Cscript%3Ealert%281%29%3C/script%3E/"
    index = Page(out / "index.html")
    assert index.scripts == []
    assert any("<b>/summary.json cannot be read" in text for text in index.texts)


def test_unreadable_folders_are_named_and_left_out(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    copy_evaluation(source / "one", root / "good")
    copy_evaluation(source / "one", root / "without_samples")
    (root / "without_samples" / "samples.parquet").unlink()
    copy_evaluation(source / "one", root / "cut")
    with (root / "cut" / "samples.parquet").open("r+b") as file:
        file.truncate(1000)
    copy_evaluation(source / "one", root / "wrong", fgs={"accuracy": [{"eps": 1, "accuracy": 1}]})
    (root / "empty").mkdir()
    (root / "empty" / "summary.json").write_text("[]")
    shard(root / "unmerged", 0, 2, [0, 2])
    ended = call(SCRIPT, root, "--out", tmp_path / "out", NO_SHEETS)
    assert ended.code == 0
    assert "1 evaluation on 1 page, 5 unreadable left out" in ended.stdout
    warnings = ended.stderr.splitlines()
    assert len(warnings) == 5
    index = Page(tmp_path / "out" / "index.html")
    for name in ("without_samples", "cut", "wrong", "empty", "unmerged"):
        line = next(line for line in warnings if f"{root / name}" in line)
        assert line.removeprefix("warning: ") in index.texts


def test_the_reference_gives_intervals(source: Path, tmp_path: Path) -> None:
    copy_evaluation(source / "one", tmp_path / "runs" / "reference")
    evaluation(tmp_path / "runs" / "better", 2.0)
    evaluation_by_two(tmp_path / "runs" / "otherwise", 1.0)
    options = ("--reference", tmp_path / "runs" / "reference", "--resamples", 200)
    make_board(tmp_path / "out", tmp_path / "runs", *options, NO_SHEETS)
    rows = {row["name"]: row for row in csv_rows(tmp_path / "out")}
    better = rows["better"]
    assert float(better["rho2_over_reference"]) == pytest.approx(2)
    assert float(better["ratio_low"]) == pytest.approx(2)
    assert float(better["accuracy_minus_reference"]) == 0
    assert float(better["mcnemar_p"]) == 1
    assert rows["reference"]["rho2_over_reference"] == ""
    assert rows["otherwise"]["rho2_over_reference"] == ""
    page = Page(tmp_path / "out" / "protocol-1.html")
    assert "2.000 [2.000, 2.000]" in page.texts
    assert "+0.00 (p 1)" in page.texts


def test_contact_sheets_are_small_pictures(source: Path, tmp_path: Path) -> None:
    copy_evaluation(source / "one", tmp_path / "runs" / "drawn")
    pictured = copy_evaluation(source / "one", tmp_path / "runs" / "pictured")
    Image.new("RGB", (1000, 2000), (250, 0, 0)).save(pictured / "sheet.png")
    damaged = copy_evaluation(source / "one", tmp_path / "runs" / "damaged")
    (damaged / "sheet.png").write_bytes(b"no picture")
    ended = call(SCRIPT, tmp_path / "runs", "--out", tmp_path / "out")
    assert ended.code == 0
    assert f"warning: {damaged}: no contact sheet" in ended.stderr
    data = json.loads(Page(tmp_path / "out" / "protocol-1.html").data)
    sheets = {row["name"]: row["sheet"] for row in data["rows"]}
    assert sheets["damaged"] is None
    with Image.open(tmp_path / "out" / sheets["pictured"]) as image:
        assert image.size == (480, 960)
        red, green, blue = image.convert("RGB").getpixel((100, 100))
        assert red > 240
        assert green + blue < 20
    with Image.open(tmp_path / "out" / sheets["drawn"]) as image:
        assert image.width == 480
        assert len(image.getcolors(10**6)) > 20


def test_mistakes_are_one_line(source: Path, tmp_path: Path) -> None:
    def error(*options: object) -> str:
        ended = call(SCRIPT, *options, NO_SHEETS)
        assert ended.code == 2
        return ended.stderr.splitlines()[-1]

    out = tmp_path / "out"
    assert error(tmp_path / "none", "--out", out) == (
        f"error: no folder {tmp_path / 'none'}; give folders that contain evaluations"
    )
    (tmp_path / "empty").mkdir()
    assert "no evaluation that can be read is below" in error(tmp_path / "empty", "--out", out)
    assert not out.exists()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    assert "is not of a board; give another --out" in error(source, "--out", tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    assert "--reference" in error(source, "--out", out, "--reference", source)
