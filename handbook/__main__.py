"""`python -m handbook` writes what in `docs/` is made of the commands, the docstrings and the measurements."""

from handbook import api, commands, comparison, plots

commands.PAGE.write_text(commands.page(), encoding="utf-8")
api.PAGE.write_text(api.page(), encoding="utf-8")
comparison.PAGE.write_text(comparison.with_figures(comparison.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
plots.FOLDER.mkdir(exist_ok=True)
for name, drawing in plots.plots().items():
    (plots.FOLDER / name).write_text(drawing, encoding="utf-8")
