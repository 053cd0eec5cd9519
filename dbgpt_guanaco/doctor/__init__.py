"""Examines this machine and this configuration as a person would, before a server is started.

::

    cli/doctor.py        prints one line for each check
    running.py           starts children that examine; whatever ends one costs a line
      ─ child process ─
    __main__.py          runs named checks, writes each finding as a line of JSON
    checks.py            every check by name: which function, how long it may take
    setup.py             the settings and the model that are examined, found out once
    findings.py          what a check returns
    *.py                 the checks, small functions: Setup → Finding

Nothing is fetched, changed or served; only the compiled decoder is built, as the first start would.
"""
