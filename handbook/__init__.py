"""What stands in the documentation and no hand has written: help pages, the Python API, plots, and the site made of all pages."""
