"""Run `python -m data_preparation.synthetic`; see dives.py."""

from data_preparation.common.command_line import run
from data_preparation.synthetic.dives import main

run(main)
