"""Measure speed, as ratios of times measured side by side in one run.

    python -m training.benchmark COMMAND [flags]       see --help for the commands

Each file without a leading underscore is a command: its dataclass `Config` has the flags, and `measure(config)` returns the
table. Each table compares this project with the reference way, which is written plainly here, and with a ceiling that is
measured in the same run. The test suite checks that the commands run, never the times.
"""
