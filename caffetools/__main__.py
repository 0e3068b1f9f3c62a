"""``python -m caffetools`` is the ``caffetools`` command."""

from caffetools.cli.app import main

main()
