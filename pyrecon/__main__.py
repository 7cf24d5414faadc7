"""``python -m pyrecon``: the command ``pyrecon``."""

from pyrecon.cli import main

main()
