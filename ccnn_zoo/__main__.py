"""``python -m ccnn_zoo`` is the command ``ccnn``."""

from ccnn_zoo.cli import main

if __name__ == "__main__":
    main()
