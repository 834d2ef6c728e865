"""``python -m tensorpress`` is the command line."""

from tensorpress.cli import main

if __name__ == "__main__":
    main()
