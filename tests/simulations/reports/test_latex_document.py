"""The tables of a report compile in a LaTeX document. Slow, and skipped where no LaTeX is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from simulations.reports.builder import report_folders
from simulations.reports.options import options_from
from tests.simulations.reports.folders import write_whole_run

COMPILER = next(filter(None, map(shutil.which, ("tectonic", "pdflatex"))), None)

DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\begin{figure*}\includegraphics[width=\textwidth]{convergence_panels.pdf}\end{figure*}
\end{document}
"""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="neither tectonic nor pdflatex is installed")
def test_three_settings_by_two_strategies_by_three_seeds_are_a_figure_and_tables_that_compile(tmp_path):
    for alpha in (0.05, 0.1, 1.0):
        for place, strategy in enumerate(("fedavg", "fedgen")):
            for seed in range(3):
                write_whole_run(tmp_path / "runs" / f"{strategy}-{alpha}-{seed}", strategy, seed, 0.05 * place, alpha=alpha)
    labels = {"fedgen": "FedGen (ours) & 100 %_#", "alpha 0.1": "α = 0.1", "alpha 1.0": r"$\alpha = 1$"}
    options = options_from({"report": "two_column", "labels": labels, "target": 0.7})
    report = report_folders([tmp_path / "runs"], options, tmp_path / "report", quiet=True)
    tables = sorted(path.name for path in report.glob("*.tex"))
    assert "by_setting.tex" in tables and len(tables) > 8
    (report / "paper.tex").write_text(DOCUMENT % "\n".join(rf"\input{{{name}}}" for name in tables))
    words = (
        [COMPILER, "paper.tex"]
        if Path(COMPILER).name == "tectonic"
        else [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    )
    done = subprocess.run(words, cwd=report, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (report / "paper.pdf").read_bytes().startswith(b"%PDF")
    log = (report / "paper.log").read_text(errors="replace") if (report / "paper.log").exists() else done.stdout + done.stderr
    too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", log)]
    assert max(too_wide, default=0.0) < 5, "no table is wider than the page"
