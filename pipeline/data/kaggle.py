"""ILSVRC-2012 in the layout of Kaggle's download, unpacked: its classes, and scans of its parts."""

from pathlib import Path, PurePosixPath

from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes
from pipeline.data.label_files import LabelFile, read_kaggle_solution, to_labels
from pipeline.data.scan import scan_folder, scan_labelled_folder
from pipeline.data.scan_rows import ReportProgress, Scan
from pipeline.errors import UserError

IMAGES = PurePosixPath("ILSVRC/Data/CLS-LOC")  # the folder of train/ and val/
SYNSETS = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"


def part_folder(root: Path, part: str) -> Path:
    """The folder of the images of "train" or "val"."""
    return root / IMAGES / part


def read_classes(root: Path) -> Classes:
    """The classes of LOC_synset_mapping.txt, by sorted WordNet ids, with their first names.

    Raises:
        UserError: the file is missing, not text or empty, or lists a class twice.
    """
    listed = read_class_list(root / SYNSETS, option="kaggle")
    names = dict(zip(listed.identities, listed.names, strict=True))
    return Classes([names[wnid].split(",")[0] for wnid in sorted(names)], sorted(names))


def scan_train(root: Path, classes: Classes, progress: ReportProgress = lambda _: None) -> Scan:
    """Scan the training images, in one folder for each WordNet id.

    Raises:
        UserError: a folder is not a class.
    """

    def known_classes(folders: list[str]) -> Classes:
        unknown = sorted(set(folders) - set(classes.identities))
        if unknown:
            raise UserError(
                f"{root / SYNSETS} does not list the class of {part_folder(root, 'train')}/"
                f"{unknown[0]}; take the file from Kaggle's download, or move the folder out"
            )
        return classes

    return scan_folder(part_folder(root, "train"), progress, known_classes)[0]


def scan_val(
    root: Path, classes: Classes, progress: ReportProgress = lambda _: None, partial: bool = False
) -> Scan:
    """Scan the flat validation images, with the classes of LOC_val_solution.csv.

    Raises:
        UserError: an image without a row in the CSV; a row without an image, unless ``partial``;
            a class that LOC_synset_mapping.txt lacks; a file that cannot be read.
    """
    path = root / SOLUTION
    labels, _ = to_labels(read_kaggle_solution(path), classes, path)
    return scan_labelled_folder(
        part_folder(root, "val"), LabelFile(path, labels), progress, partial
    )
