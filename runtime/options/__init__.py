"""Command line options that several commands and benches share."""
