"""Mistakes: misspelt names of options, values, commands and files, with the nearest name."""

from collections.abc import Callable
from pathlib import Path

from tests.helpers.in_process import EVALUATE, FINETUNE
from tests.integration.mistakes.case import Case
from tests.integration.mistakes.config import DRY, LAUNCH, refused, tuning, yaml

INDEX, REPORT, REPRODUCE = "tools/index.py", "tools/report.py", "tools/reproduce.py"
ATTACK = "--evaluation.attack.method"
IMAGENET = (  # the preprocessing of torchvision's nets instead of the digits'
    *("--data.channels", 3, "--data.mean", "[0.5,0.5,0.5]", "--data.std", "[0.5,0.5,0.5]"),
    *("--model.name", "resnet18"),
)


def beside(name: str, *argv: object) -> Callable[[Path], tuple[object, ...]]:
    """A command in a folder that holds a file of this name."""

    def make(folder: Path) -> tuple[object, ...]:
        (folder / name).touch()
        return argv

    return make


def near(name: str) -> str:
    """The end of a line that suggests a name, as a regular expression."""
    return rf"; did you mean {name}\?$"


OPTIONS = [
    tuning("near section", "no option .*" + near(r"--objective\.method"), "--objectiv.method", "x"),
    tuning("end of a name", ".*" + near(r"--evaluation\.fgs\.search"), "--fgs.search", "true"),
    tuning("ends of two names",
           ".*" + near(r"--evaluation\.attack\.method or --regularizer\.attack\.method"),
           "--attack.method", "best"),
    tuning("another section", ".*" + near(r"--train\.epochs"), "--optim.epochs", 3),
    tuning("no underscore", ".*" + near("--dry_run"), "--dryrun", "true"),
    tuning("near config", ".*" + near("--config"), "--confg", "x"),
    tuning("near help", ".*" + near("--help-all"), "--help_all"),
    tuning("a section in braces", r"no option data\.flp" + near(r"data\.hflip"),
           "--data", "{flp: true}"),
    yaml("key of a key", r": .*\.attack\.nrom" + near(r"regularizer\.attack\.norm"),
         "regularizer: {attack: {nrom: 2}}"),
    yaml("key of another section", r": no option optim\.epochs" + near(r"train\.epochs"),
         "optim: {epochs: 2}"),
    refused("a sweep", ".*" + near(r"--regularizer\.c"),
            LAUNCH, "--sweep", "regularizer.cc", 1, "--cluster", "local", "--", *DRY),
    refused("of a launcher", ".*" + near("--shard-time"), "launchers/chain.py", "--shard-tim", 8),
    refused("after the second --", ".*" + near(r"--evaluation\.fgs\.search"),
            "launchers/chain.py", "--", "--", "--evaluation.fgs.seerch", "true"),
    refused("of a command, instead of a required one", "no option --dvkit" + near("--devkit"),
            INDEX, "ilsvrc", "--dvkit", "x", "--out", "x"),
    refused("a page of help", "--help schedle: the sections are model, .*" + near("schedule"),
            FINETUNE, "--help", "schedle"),
]  # fmt: skip

VALUES = [
    tuning("near flag", r"data\.hflip must be true or false, got treu" + near("true"),
           "--data.hflip", "treu"),
    tuning("near kind", ".*got Cosin" + near("cosine"), "--schedule.kind", "Cosin"),
    tuning("near attack", r"evaluation\.attack\.method must be .* got deepfol" + near("deepfool"),
           ATTACK, "deepfol"),
    tuning("one of two attacks", r".*got deepfool\+dnn" + near("ddn"), ATTACK, "deepfool+dnn"),
    yaml("near attack of the regulariser", ".* got superdepfool" + near("superdeepfool"),
         "regularizer: {attack: {method: superdepfool}}"),
    tuning("near attack of a library", ".* has no DDNAtack" + near("foolbox.attacks:DDNAttack"),
           ATTACK, "foolbox.attacks:DDNAtack"),
    tuning("near method", r"objective\.method: no method 'parsival'.*" + near("parseval"),
           "--objective.method", "deep_defense+parsival"),
    tuning("nets that begin so", ".*" + near("squeezenet1_0 or squeezenet1_1"),
           "--model.name", "squeezenet"),
    tuning("near named weights", "model.weights: IMAGENET1K_V11 .*" + near("IMAGENET1K_V1"),
           *IMAGENET, "--model.weights", "IMAGENET1K_V11"),
    tuning("weights as torchvision names them", "model.weights: no file .*" + near("IMAGENET1K_V1"),
           *IMAGENET, "--model.weights", "ResNet18_Weights.IMAGENET1K_V1"),
    tuning("weights of another net", ".*; torchvision has IMAGENET1K_V1, DEFAULT",
           *IMAGENET, "--model.weights", "pretrained"),
    tuning("near resume", "resume: no file atuo; .*" + near("auto"), "--resume", "atuo"),
    Case("near resume of results", lambda _: (
        EVALUATE, "--resume", "nevr", "--evaluation.num_images", 1, "--output", "x"),
        r"^error: resume: nevr is not auto, never or .*" + near("never")),
]  # fmt: skip

FILES = [
    Case("near index", beside("train.parquet", FINETUNE, "--data.train", "trian.parquet", *DRY),
         r"^error: data\.train: no file trian\.parquet" + near(r"train\.parquet")),
    Case("near weights", beside("weights.pth", FINETUNE, "--model.weights", "weihts.pth", *DRY),
         r"^error: model\.weights: no file weihts\.pth" + near(r"weights\.pth")),
    Case("near mean", beside("mean.npy", FINETUNE, "--data.mean", "maen.npy", *DRY),
         r"^error: data\.mean: no file maen\.npy" + near(r"mean\.npy")),
    tuning("configuration without its ending", r"--config: no file mnist_mpl.*mnist_mlp\.yaml\?",
           "--config", "mnist_mpl"),
]  # fmt: skip

TOOLS = [
    refused("near command", "no foldr; use ilsvrc, .*" + near("folder"), INDEX, "foldr", "x"),
    refused("near command of jobs", "no command or folder canel" + near("cancel"),
            "launchers/jobs.py", "canel", "runs"),
    refused("near figure", "kind: no epoch; .*" + near("epochs"),
            REPORT, "figures", "epoch", "x", "--out", "y"),
    refused("near benchmark", "what: no regulariser; .*" + near("regularizer"),
            "tools/benchmark.py", "regulariser"),
    refused("near check", "--only: no decodng; .*" + near("decoding"),
            "tools/gpu_check.py", "--only", "decodng", "--device", "cpu"),
    refused("near experiment", "experiment: no mnist_mpl; .*" + near("mnist_mlp"),
            REPRODUCE, "mnist_mpl"),
    refused("near method of an experiment", "--methods: no deep_defens; .*" + near("deep_.*"),
            REPRODUCE, "mnist_mlp", "--methods", "deep_defens", "--dry-run"),
    refused("near attack of an experiment", "--attack: .* got bets" + near("best"),
            REPRODUCE, "mnist_mlp", "--attack", "bets", "--dry-run"),
]  # fmt: skip

CASES: list[Case] = [*OPTIONS, *VALUES, *FILES, *TOOLS]
