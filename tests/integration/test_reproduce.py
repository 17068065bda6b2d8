"""tools/reproduce.py: the plan, runs on this machine and on SLURM, the table beside the paper's."""

import csv
import json
import re
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launchers.submit import SUBMITTED
from pipeline.data import demo
from pipeline.errors import UserError
from pipeline.reports.table import TableRow
from pipeline.runtime import config_file
from pipeline.runtime.text_tables import write_csv
from reproduction import data, earlier, estimate, experiments, recorded, report, sweep
from reproduction import run as start
from reproduction.experiments import EXPERIMENTS
from reproduction.plan import PlannedRun, Planner
from reproduction.sweep import SweepRow
from tests.helpers.in_process import call, succeed
from tests.helpers.runs import Run, command, environment
from tests.helpers.slurm import slurm, wait_until

TOOL = "tools/reproduce.py"
SHORT = ("--train.pretrain_epochs", 1, "--train.epochs", 1, "--evaluation.num_images", 100)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits, named as MNIST's files are."""
    folder = tmp_path_factory.mktemp("downloads") / "mnist"
    folder.mkdir()
    source = Path(demo.__file__).parent / "digits"
    for part, name in (("train", "train"), ("val", "t10k")):
        for kind in ("images-idx3", "labels-idx1"):
            old = f"{part}-{kind.replace('-', '.')}-ubyte.gz"
            shutil.copyfile(source / old, folder / f"{name}-{kind}-ubyte.gz")
    return folder.parent


def test_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(EXPERIMENTS["mnist_lenet"], tmp_path, ["--optim.momentum", "0.8"])
    units = {unit.name: unit for unit in planner.table([0, 1], ["adversarial_1", "deep_defense"])}
    assert len(units) == 2 * 7
    seen: set[str] = set()
    for name, unit in units.items():  # in an order in which they can run
        assert {need.name for need in unit.needs} <= seen
        seen.add(name)
    tuned = units["seed1/adversarial_1"]
    assert [need.name for need in tuned.needs] == ["seed1/reference", "seed1/examples"]
    assert tuned.config.data.train == str(tmp_path / "seed1/examples/joined.parquet")
    assert tuned.config.model.weights == str(tmp_path / "seed1/reference/weights.pth")
    assert (tuned.config.train.seed, tuned.config.train.pretrain_epochs) == (1, 0)
    assert tuned.config.optim.momentum == 0.8
    assert units["seed1/examples"].config.data.val == str(tmp_path / "data/train.parquet")
    reference = units["seed0/reference"].config
    assert (reference.train.epochs, reference.train.pretrain_epochs) == (0, 20)
    assert units["seed0/deep_defense/evaluation"].config.evaluation.fgs.search

    monkeypatch.setattr(experiments, "SWEEP_C", (5, 45))  # a parse each takes its time
    monkeypatch.setattr(experiments, "LAYERS_C", (35,))
    swept = Planner(EXPERIMENTS["mnist_lenet"], tmp_path).sweep([0], 3)
    points = {(u.config.regularizer.lam, u.config.regularizer.c) for u in swept if u.needs}
    assert points == {(lam, c) for lam in (5, 15, 25) for c in (5, 45)}
    masked = Planner(EXPERIMENTS["mnist_lenet"], tmp_path).sweep([0], 4)
    layers = {(*u.config.regularizer.layers, u.config.regularizer.c) for u in masked if u.needs}
    every = ("0.*", "2.*", "5.*", "7.*")
    assert layers == {(layer, 35) for layer in every}
    distances = Planner(EXPERIMENTS["mnist_mlp"], tmp_path, attack="best").table([0], [])[-1]
    assert distances.name == "seed0/reference/distances"
    assert distances.config.evaluation.attack.method == "best"
    assert distances.config.evaluation.attack.max_iterations == 50
    assert not distances.config.evaluation.fgs.enabled
    some = Planner(EXPERIMENTS["mnist_lenet"], tmp_path).sweep([2], 3, ["lam=5,*", "lam=25,c=45"])
    names = [planned.name.rpartition("/")[2] for planned in some if planned.needs]
    assert sorted(names) == ["lam=25,c=45", "lam=5,c=45", "lam=5,c=5"]
    with pytest.raises(UserError, match=r"--points: no conv9,\*; there are conv1,c=35, conv2"):
        Planner(EXPERIMENTS["mnist_lenet"], tmp_path).sweep([0], 4, ["conv9,*"])
    with pytest.raises(UserError, match="--figure 4 exists for mnist_lenet only"):
        Planner(EXPERIMENTS["mnist_mlp"], tmp_path).sweep([0], 4)


def test_eps_ref_is_read_from_the_folder_of_an_evaluation(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"fgs": {"eps_ref": 0.1}}))
    options = ["--evaluation.fgs.reference", str(tmp_path)]
    planner = Planner(EXPERIMENTS["mnist_mlp"], tmp_path / "out", options)
    for planned in planner.table([0], ["deep_defense"]):
        assert planned.config.evaluation.fgs.measured == pytest.approx([0.02, 0.05, 0.1])
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match="holds no eps_ref"):
        Planner(EXPERIMENTS["mnist_mlp"], tmp_path / "out", options).table([0], [])


def test_a_reference_stays_whatever_the_regularisers_options(tmp_path: Path) -> None:
    def planned(*argv: str) -> dict[str, PlannedRun]:
        planner = Planner(EXPERIMENTS["mnist_mlp"], tmp_path, argv)
        return {unit.name: unit for unit in planner.table([0], ["deep_defense"])}

    for unit in planned().values():
        unit.folder.mkdir(parents=True)
        config_file.save(unit.config, unit.folder / SUBMITTED)
        (unit.folder / unit.result).touch()
    other = planned("--regularizer.c", "50", "--schedule.milestones", "[2]")
    assert other["seed0/reference"].done()
    with pytest.raises(UserError, match=r"other options \(regularizer.c: 25\S* -> 50"):
        other["seed0/deep_defense"].done()
    with pytest.raises(UserError, match=r"reference was made .* \(optim.lr: 0.0005 -> 0.1"):
        planned("--optim.lr", "0.1")["seed0/reference"].done()


def test_an_experiment_can_be_listed(tmp_path: Path) -> None:
    ended = call(TOOL, "mnist_mlp", "--output", tmp_path / "mlp", "--dry-run")
    assert ended.code == 0, ended.stderr
    assert re.search(r"seed0/deep_defense +[\d.]+ (s|min|h) *\n", ended.stdout)
    assert re.search(r"about [\d.]+ (min|h) on this machine, 1 at a time", ended.stdout)
    assert "timing" in ended.stderr  # which takes minutes for large nets
    assert not (tmp_path / "mlp").exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "mnist_mlp" else pytest.mark.slow)
        for name in EXPERIMENTS
    ],
)
def test_the_last_run_of_an_experiment_is_its_evaluation(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    methods = [method.name for method in experiment.methods]
    last = Planner(experiment, tmp_path).table([0], methods)[-1].config
    assert last.evaluation.fgs.search
    assert last.evaluation.num_images is None
    assert set(experiment.paper) <= {"reference", *methods}


def check_report(folder: Path) -> None:
    """A report of one epoch of Deep Defense on the embedded digits."""
    with (folder / "report/table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Reference", "Deep Defense"]
    assert float(rows["Deep Defense"]["rho2"]) > 1.2 * float(rows["Reference"]["rho2"])
    assert float(rows["Deep Defense"]["accuracy_at_1_eps_ref"]) <= 0.5
    page = (folder / "report/report.md").read_text()
    assert "(98.65)" in page
    assert "6,000 images to train on, 2,000 to test on (a part of the data set" in page
    assert (folder / "report/figure2.png").stat().st_size > 5000
    with (folder / "report/figure2.csv").open() as file:
        histories = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in histories] == [0, 1]


def check_distances(folder: Path) -> None:
    """The second table of the report, by two attacks."""
    with (folder / "report/distances.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Reference", "Deep Defense"]
    for row in rows.values():
        best, superdeepfool = float(row["best"]), float(row["superdeepfool"])
        assert best <= superdeepfool < float(row["deepfool"])
        assert float(row["deepfool_over_best"]) == pytest.approx(float(row["deepfool"]) / best)
    page = (folder / "report/report.md").read_text()
    assert "| Method | by deepfool | by superdeepfool | best | DeepFool / best |" in page


def start_in_this_process(planned: PlannedRun, ranks: int, at_once: int) -> SimpleNamespace:
    """As reproduction.run starts a run, but for the process; ended when it returns."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    config_file.save(planned.config, planned.folder / SUBMITTED)
    script = f"{planned.module.replace('.', '/')}.py"
    ended = call(script, "--config", planned.folder / SUBMITTED)
    (planned.folder / start.LOG).write_text(ended.stdout + ended.stderr)
    return SimpleNamespace(poll=lambda: ended.code, returncode=ended.code)


def test_the_report_of_an_experiment(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of tools/reproduce.py but for its processes and the timing of nets."""
    monkeypatch.setattr(start, "_start", start_in_this_process)
    monkeypatch.setattr(data, "_run", lambda tool, *argv: succeed(f"tools/{tool}", *argv))
    monkeypatch.setattr(estimate.RuntimeEstimator, "_seconds_of_one_rank", lambda *_: 1.0)
    folder = tmp_path / "mlp"
    options = ("mnist_mlp", "--data", downloads, "--output", folder, "--methods", "deep_defense")
    options += ("--attack", "deepfool+superdeepfool")
    ended = call(TOOL, *options, "--", *SHORT, "--log.panel_images", 0)
    assert ended.code == 0, ended.stdout + ended.stderr
    assert re.findall(r"starting (.*)", ended.stdout) == [
        f"seed0/{name}"
        for name in (
            "reference",
            "reference/evaluation",
            "reference/distances",
            "deep_defense",
            "deep_defense/evaluation",
            "deep_defense/distances",
        )
    ]
    check_report(folder)
    check_distances(folder)
    check_earlier_rows(folder, options)
    check_eps_ref(folder)
    check_other_options(folder)
    check_costs(folder, tmp_path / "costs.json")


def check_earlier_rows(folder: Path, options: tuple[object, ...]) -> None:
    """--with-report: the same report as one of another seed, beside this one's rows."""
    earlier = folder.parent / "earlier"
    shutil.copytree(folder / "report", earlier)
    for name in ("table.csv", "distances.csv"):
        text = (earlier / name).read_text().replace(",0,", ",7,")
        (earlier / name).write_text(text)
    ended = call(TOOL, *options, "--with-report", earlier, "--", *SHORT, "--log.panel_images", 0)
    assert ended.code == 0, ended.stdout + ended.stderr
    for name in ("table.csv", "distances.csv"):
        with (folder / "report" / name).open() as file:
            rows = list(csv.DictReader(file))
        assert [row["seed"] for row in rows] == ["0", "7"] * (len(rows) // 2)
        own, other = ({**row, "seed": ""} for row in rows[:2])
        assert own == other
    page = (folder / "report/report.md").read_text()
    assert "The tables also have the rows of an earlier report:" in page
    assert "± 0.00" in page
    assert "--with-report earlier -- " in page  # without the folder's place on this machine
    mistake = call(TOOL, *options, "--with-report", folder)
    assert mistake.code == 2
    assert "error: --with-report: " in mistake.stderr


def check_eps_ref(folder: Path) -> None:
    """Without Deep Defense, eps_ref is that of an earlier report; without both there is none."""
    experiment, alone = EXPERIMENTS["mnist_mlp"], folder.parent / "alone"
    nets = ("reference", "deep_defense")
    names = {f"seed0/{net}/evaluation" for net in nets}
    (with_it,) = report.rows_by_method(experiment, folder, names, [0])["reference"].values()
    shutil.copytree(folder / "seed0/reference", alone / "seed0/reference")
    names.discard("seed0/deep_defense/evaluation")
    eps_refs = {0: with_it.eps_ref, 1: 7.0}
    rows = report.rows_by_method(experiment, alone, names, [0], eps_refs)
    assert rows == {"reference": {0: with_it}}
    assert with_it.after_fgs[0] > with_it.after_fgs[2]
    (row,) = report.rows_by_method(experiment, alone, names, [0])["reference"].values()
    assert row == with_it._replace(after_fgs=(None, None, None), eps_ref=None)
    shutil.copytree(folder / "data", alone / "data")
    planned = Planner(experiment, alone).table([0], [])
    page = report.Report(experiment, alone, [0], planned, "the command", None).write().read_text()
    assert "The @ columns need eps_ref of Deep Defense with the same seed: add " in page


def check_other_options(folder: Path) -> None:
    """A report has the rows of other methods only if they were made with the same options."""
    experiment = EXPERIMENTS["mnist_mlp"]
    same = [*map(str, SHORT), "--log.panel_images", "0"]

    def page(options: list[str]) -> tuple[str, list[str], list[str]]:
        planner = Planner(experiment, folder, options)
        planned = planner.table([0], [])
        others = recorded.find(planner, planned, [0])
        made = report.Report(experiment, folder, [0], planned, "", None, others=others)
        text = made.write().read_text()
        tables = (folder / "report/table.csv", folder / "report/distances.csv")
        rows = ([line.partition(",")[0] for line in path.open()][1:] for path in tables)
        return text, *rows

    both = ["Reference", "Deep Defense"]
    text, rows, distances = page(same)
    assert (rows, distances) == (both, both), "the attack is that of the earlier command"
    assert "![By epoch" in text
    assert "Left out" not in text
    text, rows, distances = page([*same, "--regularizer.c", "50"])
    assert (rows, distances) == (both[:1], both[:1])
    assert "![By epoch" not in text
    assert re.search(r"- seed0/deep_defense: .* made with other options \(regularizer.c: 25", text)


def check_costs(folder: Path, path: Path) -> None:
    """tools/benchmark.py robustness, of the runs of an experiment."""
    # The authors' algorithm has the gradient of a run with this name.
    shutil.copytree(folder / "seed0/deep_defense", folder / "seed0/deep_defense_exact")
    options = ("robustness", "--runs", folder, "--repeats", 1, "--json", path)
    assert call("tools/benchmark.py", *options).code == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["deep_defense", "deep_defense_exact", "authors' algorithm"]
    own, authors = rows["deep_defense"], rows["authors' algorithm"]
    summary = json.loads((folder / "seed0/deep_defense/distances/summary.json").read_text())
    for row in rows.values():
        assert row["best"] == summary["rho2"]
        assert row["accuracy"] == pytest.approx(100 * summary["accuracy"])
        assert row["flops_epochs"] == row["flops_step"]  # one epoch
    assert 3 < own["flops_step"] < 10 < authors["flops_step"]
    assert authors["share_of_highest"] == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on(run: Run, downloads: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlp"
    argv = ("mnist_mlp", "--data", downloads, "--output", folder, "--max-parallel", 2)
    argv += ("--methods", "deep_defense", "--", *SHORT)
    process = subprocess.Popen(
        command(TOOL, *argv), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (folder / "seed0/deep_defense/metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert b"rerun the same command to resume" in errors
    before = (folder / "seed0/reference/weights.pth").stat().st_mtime

    done = run(TOOL, *argv)
    assert done.returncode == 0, done.stderr
    assert "starting seed0/reference\n" not in done.stdout
    assert (folder / "seed0/reference/weights.pth").stat().st_mtime == before
    check_report(folder)

    refused = run(TOOL, *argv, "--optim.lr", "0.1")
    assert refused.returncode == 2
    assert "was made with other options (optim.lr: 0.0005 -> 0.1" in refused.stderr


@pytest.mark.slow
def test_what_fails_is_named_and_the_rest_goes_on(downloads: Path, tmp_path: Path) -> None:
    argv = ("mnist_mlp", "--data", downloads, "--output", tmp_path / "x", "--seeds", 0, 1)
    argv += ("--max-parallel", 2)
    argv += ("--methods", "clean", "--", *SHORT, "--resume", tmp_path / "no.pt")
    ended = call(TOOL, *argv)
    assert ended.code == 2
    assert re.findall(r"starting (.*)", ended.stdout) == ["seed0/reference", "seed1/reference"]
    last = ended.stderr.strip().splitlines()[-1]
    assert "2 failed (seed0/reference: " in last
    assert "no.pt" in last
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"no weights")
    ended = call(TOOL, *argv[:5], "--weights", bad)
    assert ended.code == 2
    assert f"{bad} is not a file of torch.save" in ended.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("mnist_mlp",), "has no mnist yet; give --data DIR"),
        (("mnist_mlp", "--data", "."), "there is no train-images-idx3-ubyte.gz in"),
        (("mnist_mlp", "--attack", "x"), "--attack: method must be deepfool, superdeepfool"),
        (("mnist_mlp", "--methods", "x"), "--methods: no x; there are clean, parseval"),
        (("mnist_mlp", "--points", "x"), "--points: only Figures 3 and 4 have points"),
        (("mnist_mlp", "--figure", "3", "--methods", "clean"), "--methods: Figure 3 has none"),
        (("mnist_mlp", "--figure", "3", "--points", "x"), "--points: no x; there are lam=5,c=5"),
        (("imagenet_alexnet",), "no file caffe_alexnet.pth; the paper's AlexNet is Caffe's"),
    ],
)
def test_mistakes(tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    if "." in argv:
        argv = (*argv[:-1], str(tmp_path))
    ended = call(TOOL, *argv, "--output", tmp_path / "out")
    assert ended.code == 2
    (line,) = ended.stderr.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("method,seed,accuracy\nReference,0,0.9\n", "table.csv has no column rho2"),
        ("method,accuracy\nReference,0.9\n", "table.csv is no table of a report ('seed')"),
        ("method,seed,accuracy\nReference,0,x\n", "table.csv is no table of a report (could"),
    ],
)
def test_a_damaged_table_of_an_earlier_report(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(table)
    with pytest.raises(UserError) as raised:
        earlier.table_rows(tmp_path, "MNIST MLP", {"clean": "Reference"})
    assert message in str(raised.value)


def test_the_table_says_mean_and_spread_beside_the_papers() -> None:
    values = (0.986, 0.988, 0.99)
    rows = [TableRow("MNIST MLP", "Deep Defense", v, v / 4, (v, None, 0.5), 20.0) for v in values]
    rows_by_method = {"deep_defense": dict(enumerate(rows)), "clean": {1: rows[0]}}
    text = report.compared(EXPERIMENTS["mnist_mlp"], rows_by_method)
    assert text.splitlines()[0].endswith("| seeds |")
    first, second = text.splitlines()[2:]
    spread = 100 * statistics.stdev(values)
    assert f"| 98.80 ± {spread:.2f} (98.65) | 0.247 ± 0.0005 (0.225) |" in first
    assert "|  (88.93) | 50.00 ± 0.00 (50.00) |" in first
    assert second.startswith("| Clean fine-tuning | 98.60 | 0.246 |")


@pytest.mark.slow
def test_a_sweep_is_run_and_drawn(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "SWEEP_C", (5, 45))
    monkeypatch.setattr(experiments, "SWEEP_LAMBDA", (15,))
    mlp = EXPERIMENTS["mnist_mlp"]
    data.prepare(mlp.data, downloads, tmp_path / "data")
    units = Planner(mlp, tmp_path, list(map(str, SHORT))).sweep([0, 1], 3)
    expected = estimate.RuntimeEstimator(mlp, tmp_path / "data", 1, 2).seconds(units)
    start.run_locally(units, expected, ranks=1, max_parallel=2)
    assert all(unit.done() for unit in units)
    page = report.Report(mlp, tmp_path, [0, 1], units, "the command", 3).write()
    assert "`the command`" in page.read_text()
    with (page.parent / "figure3.csv").open() as file:
        points = list(csv.DictReader(file))
    options = [tuple(float(point[name]) for name in ("seed", "lam", "c")) for point in points]
    assert options == [(0, 15, 5), (0, 15, 45), (1, 15, 5), (1, 15, 45)]
    for (seed, _, c), point in zip(options, points, strict=True):
        path = tmp_path / f"seed{seed:g}/figure3/lam=15,c={c:g}/summary.json"
        (_, last) = json.loads(path.read_text())["history"]
        assert (float(point["accuracy"]), float(point["rho2"])) == (last["accuracy"], last["rho2"])
    assert (page.parent / "figure3.png").stat().st_size > 5000


def test_the_points_of_an_earlier_figure(tmp_path: Path) -> None:
    """Layers by c: rows of two days; a line has the layer's title, each point the seeds' mean."""
    old = [
        SweepRow(0, 15.0, 5.0, "5.*", 0.98, 0.30),
        SweepRow(1, 15.0, 5.0, "5.*", 0.96, 0.34),
        SweepRow(0, 15.0, 25.0, "0.*", 0.99, 0.21),
    ]
    write_csv(tmp_path / "figure4.csv", SweepRow._fields, old)
    assert sweep.earlier_rows(tmp_path, 4) == old
    new = [SweepRow(0, 15.0, 25.0, "0.*", 0.97, 0.22), SweepRow(0, 15.0, 5.0, "0.*", 0.95, 0.20)]
    rows = sweep.merged(new, old)
    assert rows == [new[1], old[0], new[0], old[1]]  # by seed, lambda, c, layers
    (axis,) = sweep.draw(EXPERIMENTS["mnist_lenet"], rows, 4).axes
    drawn = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert drawn["conv1"] == pytest.approx(np.array([[0.20, 95], [0.22, 97]]))
    assert drawn["fc1"] == pytest.approx(np.array([[0.32, 97]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda,c,layers\n15,5,all\n", "figure3.csv has no points of a figure ('seed')"),
        ("seed,lam,c,layers,accuracy,rho2\n0,x,5,all,1,1\n", "figure3.csv has no points of a fig"),
        (None, "No such file"),
    ],
)
def test_a_damaged_earlier_figure(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "figure3.csv").write_text(text)
    argv = ("mnist_mlp", "--figure", 3, "--with-report", tmp_path, "--output", tmp_path / "out")
    ended = call(TOOL, *argv)
    assert ended.code == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: --with-report: ")
    assert message in line


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm(run: Run, cluster: None, downloads: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlp"
    argv = ("mnist_mlp", "--data", downloads, "--output", folder, "--cluster", "slurm")
    argv += ("--cpus-per-task", 1, "--time", "5m", "--methods", "adversarial_1", "deep_defense")
    done = run(TOOL, *argv, "--", *SHORT)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^job \d+: seed0", done.stdout, re.MULTILINE)) == 4
    again = call(TOOL, *argv, "--", *SHORT)
    assert again.code == 2
    assert "or cancel it: python launchers/jobs.py cancel" in again.stderr
    wait_until(lambda: not slurm("squeue", "-h"), lambda: slurm("squeue"), seconds=240)
    for name in ("adversarial_1", "deep_defense"):
        assert (folder / "seed0" / name / "evaluation" / "summary.json").exists()
    done = run(TOOL, *argv, "--", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "| Deep Defense |" in done.stdout
