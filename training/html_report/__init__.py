"""report.html: a self-contained page about a run, and one that compares runs.

`page.py` makes both pages; a task gives the sections about its result (`Task.report_sections`); `figures.py` draws; `content.py` has
what a section is made of; `templates/` has the HTML and the style sheet.
"""
