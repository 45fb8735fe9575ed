"""The project's Kedro pipelines: nodes call the library, data sets do the reading and writing."""
