"""``python -m trifocal`` is the command line."""

from trifocal.cli import main

main()
