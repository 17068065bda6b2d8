"""Tables and figures of a fine-tuning and of its evaluations before and after, on one page.

In: RUN, RUN/before and RUN/after, as launchers/chain.py makes them. Out: RUN/report/.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.runtime.files import atomic_write, check_writable

from . import figures, method_titles, runs, table, table_formats

_FILES = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}


def write(folder: Path) -> Path:
    """Write RUN/report/report.md with tables and figures; returns the path of the page.

    Raises:
        UserError: the fine-tuning or one of its evaluations has no summary yet, or its config.yaml
            does not state the method.
    """
    tuned = runs.read(folder)
    label = method_titles.label(tuned.option("objective.method"))
    tuned = replace(tuned, label=label)
    before = runs.read(folder / "before", "Reference")
    after = runs.read(folder / "after", label)
    target = folder / "report"
    check_writable(target / "report.md", f"make {target} writable")
    target.mkdir(exist_ok=True)
    table.warn_of_differences([before, after])
    rows = table.rows_of([before, after])
    for kind, name in _FILES.items():
        (target / name).write_text(table_formats.FORMATS[kind](rows))
    titled_figures = {
        "epochs": ("Accuracy and rho2 by epoch", figures.epochs([tuned])),
        "ratios": ("Perturbation of each image, relative", figures.ratios([before, after])),
        "sheet-before": ("Perturbations before", figures.stored_sheet(before)),
        "sheet-after": ("Perturbations after", figures.stored_sheet(after)),
    }
    lines = [f"# {folder.name}", "", table_formats.FORMATS["markdown"](rows)]
    for name, (title, figure) in titled_figures.items():
        if figure is None:  # evaluated with --num_examples 0
            continue
        figures.save(figure, target / name)
        lines += [f"## {title}", "", f"![{title}]({name}.png)", ""]
    page = target / "report.md"
    with atomic_write(page) as partial:
        partial.write_text("\n".join(lines))
    return page
