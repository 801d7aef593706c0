"""Experts from descriptions of tasks."""
