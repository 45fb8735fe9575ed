"""`python -m sleep_pipeline ...` is `sleep-pipeline ...`."""

from sleep_pipeline.cli import main

if __name__ == "__main__":
    main()
