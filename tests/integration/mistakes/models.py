"""Mistakes: nets and weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.models.paper_nets import mlp
from tests.helpers.in_process import EVALUATE, FINETUNE
from tests.integration.mistakes.case import Case

DRY = ("--dry_run", "true")
IMPORTS = "import torch\nfrom torch import nn\nfrom pipeline.models.paper_nets import mlp\n"
NO_GRAD = """
class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()
    @torch.no_grad()
    def forward(self, images):
        return self.inner(images)
net = Frozen
"""
DETACHED = """
class Detached(nn.Sequential):
    def forward(self, images):
        return super().forward(images.detach())
def net():
    return Detached(nn.Flatten(), nn.Linear(784, 10))
"""
UNUSED = """
def net():
    base = mlp()
    base.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return base
"""
SOMETIMES_NAN = """
class SometimesNan(nn.Sequential):
    def forward(self, images):
        pixels = images.flatten(1)
        bright = (pixels.amin(dim=1) > -1) & (pixels.sum(dim=1) > 0)  # some of the digits
        return super().forward(images) * torch.where(bright, torch.nan, 1.0)[:, None]
def net():
    return SometimesNan(nn.Flatten(), nn.Linear(784, 10))
"""
NAN_IN_EVALUATION = SOMETIMES_NAN.replace("> 0)", "> 0) & (not self.training)")


def with_net(
    module: str, code: str, script: str = FINETUNE, name: str = "net"
) -> Callable[[Path], Sequence[object]]:
    """A dry run with a net of the user's own, in MODULE.py in the working folder."""

    def argv(folder: Path) -> Sequence[object]:
        (folder / f"{module}.py").write_text(IMPORTS + code)
        return (script, "--model.name", f"{module}:{name}", *DRY)

    return argv


def with_name(name: str) -> Callable[[Path], Sequence[object]]:
    return lambda _: (FINETUNE, "--model.name", name, *DRY)


def with_weights(
    save: Callable[[Path], object], *options: object, script: str = EVALUATE
) -> Callable[[Path], Sequence[object]]:
    """A dry run with the weights that ``save`` writes to a file w.pth."""

    def argv(folder: Path) -> Sequence[object]:
        save(folder / "w.pth")
        return (script, "--model.weights", folder / "w.pth", *options, *DRY)

    return argv


def save_nan(path: Path) -> None:
    net = mlp()
    with torch.no_grad():
        net[3].weight[2, 5] = torch.nan
    torch.save(net.state_dict(), path)


def save_damaged(path: Path) -> None:
    torch.save(mlp().state_dict(), path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(2000))


def save_of_12_classes(path: Path) -> None:
    torch.save(mlp(12).state_dict(), path)


def chain_with_new_head(folder: Path) -> Sequence[object]:
    argv = with_weights(save_of_12_classes, "--model.new_head", "true")(folder)[1:]
    return ("launchers/chain.py", "--cluster", "local", "--", *argv, "--output", folder / "c")


def evaluate_sometimes_nan(folder: Path) -> Sequence[object]:
    argv = with_net("sometimes_nan", SOMETIMES_NAN, EVALUATE)(folder)[:-2]
    return (*argv, "--evaluation.num_images", 20, "--num_examples", 0, "--output", folder / "e")


def finetune_nan_in_evaluation(folder: Path) -> Sequence[object]:
    argv = with_net("nan_in_evaluation", NAN_IN_EVALUATION)(folder)[:-2]
    short = ("--train.pretrain_epochs", 0, "--train.epochs", 1, "--train.batch_size", 3000)
    few = ("--evaluation.num_images", 20, "--log.panel_images", 0)
    return (*argv, "--objective.method", "clean", *short, *few)


CASES: list[Case] = [
    Case("B-4 NaN", with_weights(save_nan), r"w\.pth holds numbers .* not finite in 3\.weight;"),
    Case("B-4 damaged", with_weights(save_damaged), r"w\.pth is damaged: the checksum of"),
    Case(
        "B-4 at the start",
        lambda _: (EVALUATE, "--model.init_std", 1e30, *DRY),
        r"model\.name: mlp gives logits that are not finite",
    ),
    Case(
        "B-4 some images",
        evaluate_sometimes_nan,
        r"(?s)^(?!.*no gradient).*\d images have logits .* not finite",
        code=0,
    ),
    Case(
        "B-4 in an evaluation of training",
        finetune_nan_in_evaluation,
        r"(?s)not finite │ +10 │ +10 │.*warning: 10 of 20 images have logits .* not finite",
        code=0,
    ),
    Case("B-26 no_grad", with_net("under_no_grad", NO_GRAD), "have no gradient with respect to"),
    Case("B-26 detach", with_net("with_detach", DETACHED), "have no gradient with respect to"),
    Case(
        "B-26 exception in a factory",
        with_net("raising", "def net():\n    raise KeyError('depth')"),
        r"raising:net failed: KeyError: 'depth' \(.*raising\.py, line 5\)",
    ),
    Case(
        "B-26 exception in a module",
        with_net("no_syntax", "def net(:"),
        r"no_syntax:net failed: SyntaxError: invalid syntax",
    ),
    Case("B-26 os:system", with_name("os:system"), r"os:system failed: TypeError: system\(\) miss"),
    Case("B-26 colon", with_name(":"), "model.name must be package.module:name, got ':'"),
    Case("B-26 no attribute", with_name("json:"), "must be package.module:name, got 'json:'"),
    Case("B-26 no net", with_name("collections:OrderedDict"), "a OrderedDict, not an nn.Module"),
    Case(
        "B-26 unused parameter",
        with_net("unused", UNUSED),
        "warning: model.name: unused:net does not use spare in its forward",
        code=0,
    ),
    Case(
        "C **kwargs",
        with_net(
            "any_options", "def net(**kwargs):\n    return mlp(**{'num_classes': 7} | kwargs)"
        ),
        "any_options:net, 469,160 trained parameters",
        code=0,
    ),
    Case(
        "C **kwargs without num_classes",
        with_net(
            "other_options",
            "def fixed(depth=2):\n    return mlp()\ndef net(**kwargs):\n    return fixed(**kwargs)",
        ),
        "other_options:net, 469,160 trained parameters",
        code=0,
    ),
    Case(
        "C weights of another head",
        with_weights(save_of_12_classes, script=FINETUNE),
        r"5\.weight is \(12, 150\).*head is for 12 classes: .*model\.new_head true",
    ),
    Case(
        "C new head",
        with_weights(save_of_12_classes, "--model.new_head", "true", script=FINETUNE),
        r"a new head of 10 classes: 5\.weight, 5\.bias; other weights from .*w\.pth",
        code=0,
    ),
    Case("new head in a chain", chain_with_new_head, r"^would submit: fine-tuning", code=0),
    Case(
        "new head without weights",
        lambda _: (FINETUNE, "--model.new_head", "true", *DRY),
        r"model\.new_head: there are no weights to keep; give model\.weights",
    ),
    Case(
        "refused pickle",
        with_weights(lambda path: torch.save(nn.ReLU(), path)),
        r"w\.pth holds a Python object besides tensors \(torch\.nn\.\S+ReLU\); save the net's "
        r"state_dict\(\), or convert it to \.safetensors\n",
    ),
    Case(
        "preprocessing of a net without a publisher",
        lambda _: (FINETUNE, "--data.preprocessing", "auto", *DRY),
        r"data\.preprocessing auto: the preprocessing of mlp with random weights is not known",
    ),
    Case(
        "near miss of a net", with_name("resnet81"), r"no net 'resnet81'; did you mean resnet18\?"
    ),
]
