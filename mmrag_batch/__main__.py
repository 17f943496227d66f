"""`python -m mmrag_batch` is `mmrag-batch`."""

from mmrag_batch.cli.app import main

if __name__ == "__main__":
    main()
