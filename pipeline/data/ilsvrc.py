"""ILSVRC-2012's archives as downloaded: the rows of an index, and the development kit's labels."""

import gzip
import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.data.classes import Classes
from pipeline.data.scan_rows import Member, ReportProgress, Scan
from pipeline.data.tar_members import check_complete, file_size, tar_members
from pipeline.errors import UserError, first_few

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})")  # the test images have numbers, too

ILSVRC_COUNTS = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC-2012


def scan_ilsvrc_train(
    path: Path, labels: dict[str, int], progress: ReportProgress = lambda _: None
) -> Scan:
    """Scan the training tar, which contains one tar per class, named by its WordNet id.

    Args:
        path: ILSVRC2012_img_train.tar as downloaded.
        labels: label of each WordNet id.
        progress: called with the number of bytes scanned so far.
    """
    scan, size = Scan(), file_size(path)
    with path.open("rb") as source:
        for outer in tar_members(path):
            check_complete(path, outer, size)
            wnid = PurePosixPath(outer.name).stem
            if wnid not in labels:
                raise UserError(f"{path} contains {outer.name}, a class the development kit lacks")
            end = outer.offset_data + outer.size
            for inner in tar_members(path, outer.offset_data, end):
                name = f"{wnid}/{inner.name}"
                member = Member(name, path.name, inner.offset_data, inner.size, labels[wnid])
                scan.add(member, source)
                progress(inner.offset_data + inner.size)
    return scan


def scan_ilsvrc_val(
    path: Path, labels: list[int], progress: ReportProgress = lambda _: None
) -> Scan:
    """Scan the validation tar; the number in an image's name is its position in ``labels``."""
    scan, size = Scan(), file_size(path)
    with path.open("rb") as source:
        for info in tar_members(path):
            check_complete(path, info, size)
            name = PurePosixPath(info.name).name
            match = _VALIDATION_NAME.fullmatch(PurePosixPath(name).stem)
            if match is None or not 1 <= int(match[1]) <= len(labels):
                scan.reject(info.name, path.name, "no validation image with a label in the kit")
                continue
            label = labels[int(match[1]) - 1]
            scan.add(Member(name, path.name, info.offset_data, info.size, label), source)
            progress(info.offset_data + info.size)
    return scan


@dataclass(frozen=True)
class DevelopmentKit:
    """The content of ILSVRC2012_devkit_t12, with labels instead of its class numbers.

    A label is the position of the class's WordNet id among the sorted ids of the leaf classes. All
    published weights use this order. The kit's class numbers have another order.
    """

    wnids: list[str]  # sorted; wnids[label] is the class's id
    names: list[str]  # name of each label, for display
    validation_labels: list[int]  # label of each validation image, in file order

    @property
    def classes(self) -> Classes:
        """The classes, identified by their WordNet ids."""
        return Classes(self.names, self.wnids)


def read_development_kit(path: Path) -> DevelopmentKit:
    """Read meta.mat and the validation ground truth from the kit's tar.gz.

    Raises:
        UserError: the kit cannot be read, or its files do not agree.
    """
    from scipy.io import loadmat  # slow to import

    file_size(path)
    try:
        with gzip.open(path) as compressed:
            content = compressed.read()  # reading to the end compares the checksum
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            wanted = {"meta.mat": b"", "ILSVRC2012_validation_ground_truth.txt": b""}
            for member in archive:
                if (name := PurePosixPath(member.name).name) in wanted and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None, "None only for members that are not files"
                    wanted[name] = file.read()
        meta, truth = wanted.values()
        if not meta or not truth:
            raise ValueError("meta.mat or the validation ground truth is missing")
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        leaves = leaves[np.argsort(leaves["WNID"].astype(str))]
        label_of = {int(number): label for label, number in enumerate(leaves["ILSVRC2012_ID"])}
        numbers = [int(line) for line in truth.split()]
    except Exception as error:  # gzip, tar and scipy raise errors of many types
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as ILSVRC's development kit: {reason}; download it again"
        ) from None
    unknown = sorted(set(numbers) - label_of.keys())
    if unknown:
        raise UserError(
            f"{path}: the ground truth contains classes that meta.mat lacks: "
            f"{first_few(list(map(str, unknown)))}"
        )
    return DevelopmentKit(
        wnids=[str(wnid) for wnid in leaves["WNID"]],
        names=[str(synonyms).split(",")[0] for synonyms in leaves["words"]],
        validation_labels=[label_of[number] for number in numbers],
    )
