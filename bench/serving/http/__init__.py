"""The server over loopback, under load."""
