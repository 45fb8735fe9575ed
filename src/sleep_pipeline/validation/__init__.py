"""Checks on tables, by Great Expectations; nothing outside this package knows it."""
