"""Mistakes: options that are refused, and options without effect."""

from collections.abc import Callable
from pathlib import Path

from tests.helpers.in_process import EVALUATE, FINETUNE
from tests.integration.mistakes.case import Case

DRY = ("--dry_run", "true")
LAUNCH = "launchers/finetune.py"


def command(*argv: object) -> Callable[[Path], tuple[object, ...]]:
    """A command that needs no files."""
    return lambda _: argv


def of_yaml(text: str | bytes) -> Callable[[Path], tuple[object, ...]]:
    """A fine-tuning whose configuration, mine.yaml, has this text."""

    def argv(folder: Path) -> tuple[object, ...]:
        path = folder / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return (FINETUNE, "--config", "mine.yaml", *DRY)

    return argv


def refused(number: str, line: str, *argv: object) -> Case:
    """A command that is refused."""
    return Case(number, command(*argv), f"^error: {line}")


def tuning(number: str, line: str, *argv: object) -> Case:
    """A fine-tuning that is refused."""
    return refused(number, line, FINETUNE, *argv, *DRY)


def yaml(number: str, line: str, text: str | bytes) -> Case:
    """A configuration that is refused; the line begins with its name."""
    return Case(number, of_yaml(text), rf"^error: mine\.yaml{line}")


def warned(number: str, line: str, *argv: object) -> Case:
    """A fine-tuning that prints a warning."""
    return Case(number, command(FINETUNE, *argv, *DRY), f"(?m)^warning: {line}", code=0)


RANGES = [
    tuning("B-3", r"optim\.max_grad_norm must be above 0, got -1", "--optim.max_grad_norm", -1),
    tuning("B-5 warmup", r"schedule\.warmup must be at least 0, got inf", "--schedule.warmup=.inf"),
    tuning("B-5 gamma", r"schedule\.gamma must be above 0", "--schedule.gamma", -1),
    tuning("B-5 lr", r"optim\.lr must be a number, got nan", "--optim.lr", "nan"),
    tuning("B-5 pretrain_lr", r"train\.pretrain_lr must be at least 0", "--train.pretrain_lr", -1),
    tuning("B-5 lam", r"regularizer\.lam must be at least 0, got inf", "--regularizer.lam=.inf"),
    tuning("B-5 mean", r"data\.mean must be from 0 to 1, got \[nan\]", "--data.mean", "[.nan]"),
    tuning("B-5 init_std", r"model\.init_std must be above 0, got inf", "--model.init_std=.inf"),
    tuning("B-6", r"model\.num_classes must be at least 2, got 0", "--model.num_classes", 0),
    tuning("B-6 one", r"model\.num_classes must be at least 2, got 1", "--model.num_classes", 1),
    tuning("B-11", r"log\.panel_images must be at least 0", "--log.panel_images", -1),
    tuning("B-14", r"output must be a path, got ''", "--output", ""),
    tuning(
        "B-16 timeout",
        r"runtime\.collective_timeout must be from 1",
        "--runtime.collective_timeout",
        0,
    ),
    tuning("B-23", r"optim\.lr must be at least 0, got -1", "--optim.lr", -1),
    tuning(
        "B-23 momentum", r"optim\.momentum must be at least 0 and below 1", "--optim.momentum=-1"
    ),
    tuning("B-23 decay", r"optim\.weight_decay must be at least 0", "--optim.weight_decay", -1),
    tuning("B-28 output", r"output must be a path whose names .* 255 bytes", "--output", "x" * 300),
    tuning("B-28 threads", r"data\.num_threads must be from 1 to 1024", "--data.num_threads", -1),
    tuning(
        "B-28 many threads",
        r"data\.num_threads must be from 1 to 1024",
        "--data.num_threads",
        100_000,
    ),
    tuning(
        "B-28 timeout",
        r"runtime\.collective_timeout must be from 1 to 604800",
        "--runtime.collective_timeout",
        -1,
    ),
    tuning(
        "whose overshoot",
        r"regularizer\.attack\.overshoot must",
        "--regularizer.attack.overshoot",
        -1,
    ),
    tuning(
        "whose norm", r"evaluation\.attack\.norm must be above 1", "--evaluation.attack.norm", 1
    ),
    tuning(
        "a method twice",
        r"objective\.method must be several methods, each once, got deep_defense\+deep_defense",
        *("--objective.method", "deep_defense+deep_defense"),
    ),
    tuning("milestones", r"schedule\.milestones must be in asc", "--schedule.milestones", "[8, 4]"),
    tuning(
        "no such option value", r"train\.batch_size must be at least 1", "--train.batch_size", 0
    ),
    tuning(
        "decoder without a GPU",
        r"data\.decoder must be auto or cpu with runtime\.device cpu, got gpu",
        *("--data.decoder", "gpu", "--runtime.device", "cpu"),
    ),
    tuning(
        "share of the hardware decoder",
        r"data\.hw_decoder_load must be from 0 to 1, got 1\.5",
        *("--data.hw_decoder_load", 1.5),
    ),
    refused("no images", r"num_examples must be at least 0", EVALUATE, "--num_examples", -1),
]

SPELLING = [
    tuning("near option", r".*; did you mean --train\.epochs\?$", "--train.epoch", 3),
    tuning("near lam", r".* did you mean --regularizer\.lam\?$", "--regularizer.lambda", 3),
    tuning("dash", r".* did you mean --train\.batch_size\?$", "--train.batch-size", 3),
    tuning("no section", r"no option --epochs; did you mean --train\.epochs\?", "--epochs", 3),
    tuning("no near option", "no option --zzz; --help-all lists all", "--zzz"),
    tuning("of evaluate.py", r"no option --shard here; .* pipeline/evaluate\.py", "--shard", "0/2"),
    tuning("dashes", "-- separates the options of a launcher", "--"),
    tuning("stray word", "foo: options begin with --", "foo"),
    tuning("no value", r"--train\.epochs needs a value", "--train.epochs"),
    tuning("a section", "--train is a section of options", "--train", 3),
    tuning("no number", r"optim\.lr must be a number, got fast", "--optim.lr", "fast"),
    tuning("near choice",
           r"runtime\.device must be auto, cpu or cuda, got cdua; did you mean cuda\?",
           "--runtime.device", "cdua"),
    tuning("near net", r"model\.name: no net 'resnet81'; did you mean", "--model.name", "resnet81"),
    tuning("no configuration", r"--config: no file dmeo\.yaml; did you mean .*demo\.yaml\?",
           "--config", "dmeo.yaml"),
    tuning("folder", r"\. is a folder; --config takes a YAML file", "--config", "."),
]  # fmt: skip

YAML = [
    yaml("null", r": train\.epochs must be a whole number, got null", "train: {epochs: null}"),
    yaml("null flag", r": data\.hflip must be true or false, got null", "data: {hflip: null}"),
    yaml("section", r": train must be a section of options \(epochs, .*\), got 3", "train: 3"),
    yaml("empty", " is empty; it must hold sections of options", ""),
    yaml("list", " holds a list; it must hold sections of options", "- a\n- b\n"),
    yaml("word", " holds hello; it must hold sections of options", "hello"),
    yaml("B-16 section", ", line 3: .* train is in line 1 already",
         "train:\n  epochs: 1\ntrain:\n  seed: 1\n"),
    yaml("B-16 key", ", line 1: .* epochs is in line 1", "train: {epochs: 1, epochs: 2}"),
    yaml("syntax", ", line 3: no valid YAML: ", "train:\n  epochs: [1\nx: y: z"),
    yaml("encoding", r" is not UTF-8 text \(byte 21\)", b"train: {epochs: 1} # \xff"),
    yaml("key", r": no option train\.epoch; did you mean train\.epochs\?", "train: {epoch: 1}"),
    yaml("section's name", r": no option trian; did you mean train\?", "trian: {epochs: 1}"),
    yaml("flat", r": no option epochs; did you mean train\.epochs\?", "epochs: 1"),
    yaml("type", r": optim\.lr must be a number, got fast", "optim: {lr: fast}"),
    yaml("not finite", r": optim\.lr must be at least 0, got nan", "optim: {lr: .nan}"),
    yaml("tag", ", line 1: no valid YAML: could not determine a constructor",
         'a: !!python/object/apply:os.system ["touch x"]'),
]  # fmt: skip

EFFECT = [
    warned("B-7", r"data\.half_input true has no effect: the run is on a CPU",
         "--data.half_input", "true", "--runtime.precision", "bf16"),
    warned("B-7 options", r"objective\.options .* no effect", "--objective.options", "{a: 1}"),
    warned("B-5 long", r"schedule\.warmup 99 is longer than", "--schedule.warmup", 99),
    warned("D5", r"train\.pretrain_lr 3\.0 has no effect: train\.pretrain_epochs is 0",
         "--train.pretrain_epochs", 0, "--train.pretrain_lr", 3),
    Case("D5 evaluate", command(EVALUATE, "--evaluation.attack.pruning_factor", 2, *DRY),
         r"(?m)^warning: evaluation\.attack\.pruning_factor 2\.0 has no effect", code=0),
    Case("D5 launcher",
         command(LAUNCH, "--cluster", "local", "--", "--schedule.kind", "cosine",
               "--schedule.gamma", 0.1, *DRY),
         r"(?m)^warning: schedule\.gamma 0\.1 has no effect", code=0),
]  # fmt: skip

FEW = ("--evaluation.num_images", 10, *DRY)
TOOLS = [
    refused("B-8", "--eps-ref must be above 0, got nan",
            "tools/report.py", "table", "run", "--eps-ref", "nan"),
    refused("B-8 negative", "--eps-ref must be above 0, got -1",
            "tools/report.py", "table", "run", "--eps-ref", -1),
    refused("B-16 shards", "--shards 50: there are 10 images",
            "launchers/evaluate.py", "--cluster", "local", "--shards", 50, "--", *FEW),
    refused("B-16 chain", "--shards 50: there are 10 images",
            "launchers/chain.py", "--cluster", "local", "--shards", 50, "--", *FEW),
    refused("B-16 shard", "shard: 0/50 of 10 images", EVALUATE, "--shard", "0/50", *FEW),
    refused("B-16 memory", "--mem-gb must be above 0, got nan", LAUNCH, "--mem-gb", "nan"),
    refused("B-16 less memory", "--mem-gb must be above 0, got -5", LAUNCH, "--mem-gb", -5),
    refused("B-16 data", "--data: no folder .*nonexistent",
            "tools/reproduce.py", "mnist_mlp", "--data", "/nonexistent", "--dry-run"),
    refused("B-25", "--resize 32 must be at least --crop, 64", "tools/index.py", "mean", "x",
            "--out", "y.npy", "--crop", 64, "--resize", 32),
    refused("B-25 zero", "--crop must be from 1 to 4096, got 0",
            "tools/index.py", "mean", "x", "--out", "y", "--crop", 0),
    refused("B-25 huge", "--crop must be from 1 to 4096, got 100000",
            "tools/index.py", "mean", "x", "--out", "y", "--crop", 100_000),
    refused("forgotten --", r"--train\.epochs belongs to pipeline/finetune\.py: put it after --",
            LAUNCH, "--train.epochs", 3),
    refused("abbreviation", r"no option --gpu; did you mean --gpus-per-node\?", LAUNCH, "--gpu", 3),
    refused("near choice of a tool", r".*did you mean local\?", LAUNCH, "--cluster", "loacl"),
    refused("after --", r"no option --train\.epoch; did you mean --train\.epochs\?",
            LAUNCH, "--", "--train.epoch", 3),
    refused("jobs", "--every must be from 0.1", "launchers/jobs.py", "--every", "nan"),
    refused("seed", "--seeds must be from 0",
            "tools/reproduce.py", "mnist_mlp", "--seeds", -1),
    refused("repeats", "--repeats must be at least 1",
            "tools/benchmark.py", "step", "--repeats", 0),
]  # fmt: skip

CASES: list[Case] = [
    *(*RANGES, *SPELLING, *YAML, *EFFECT, *TOOLS),
    Case(
        "no such index",
        lambda folder: (FINETUNE, "--data.train", folder / "no.parquet", *DRY),
        r"data\.train: no file .*no\.parquet",
    ),
]
