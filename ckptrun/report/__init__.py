"""What a sweep, a proof or a run has left on disk, as one page for people: ``report.html``, and ``summary.md`` for CI.

Reads files only, and says nothing that does not stand in them; what could not be read is told on the page. The order::

    run_facts     what lies in the folder of one run or proof
    sweep_facts   what lies in the folder of a sweep: its cells, and what is missing of them
    history       steps, saves, kills and losses of one run, start by start and rank by rank
    causes        cells that are not equal, put together by what is the matter with them
    uncovered     what was not looked at
    changes       what is another than in an older sweep
    axes          which overrides are rows of the matrix, and which are columns
    charts        SVG
    page          all of it as HTML, within a size
    write         finds out what a folder is, and writes the files
"""
